"""The tokens of a text, without the warning that a long text is longer than the model's window."""

from mlx_lm.tokenizer_utils import TokenizerWrapper


def token_ids(tokenizer: TokenizerWrapper, text: str, special: bool = False) -> list[int]:
    """The token ids of a text.

    Args:
        tokenizer: mlx-lm's tokenizer.
        text: The text, of any length.
        special: Whether the tokenizer adds its special tokens, such as BOS.
    """
    # With `verbose`, transformers warns of a text beyond the window. A remembered text is read in stretches, and others
    # are refused with an error of their own.
    return list(tokenizer.encode(text, add_special_tokens=special, verbose=False))
