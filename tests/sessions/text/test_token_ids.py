"""Long texts are tokenised without a warning about the model's window."""

import logging
from pathlib import Path

from mlx_lm.tokenizer_utils import load as load_tokenizer

from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.sessions.text.token_ids import token_ids
from tests.conftest import backbone

TEXT = "The key is under the blue pot."


def test_a_text_beyond_the_window_gives_no_warning():
    # A new one: transformers warns once for each tokenizer.
    tokenizer = load_tokenizer(Path(backbone()))
    tokenizer.model_max_length = 4
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        ids = token_ids(tokenizer, TEXT)
        whole = ChatTemplate(tokenizer).ids([{"role": "user", "content": TEXT}])
        assert not said
        assert tokenizer.encode(TEXT, add_special_tokens=False) == ids
        assert len(said) == 1
    finally:
        logger.removeHandler(handler)
    assert 4 < len(ids) < len(whole)
