"""The tokens of each reply in the tokens of a whole chat."""

from collections.abc import Sequence


def reply_tokens(
    ids: Sequence[int], openings: Sequence[Sequence[int]], endings: Sequence[Sequence[int]]
) -> list[list[int]] | None:
    """Find the replies by what the chat template writes around them.

    Args:
        ids: The tokens of a whole chat.
        openings: By turn, the tokens of the message in its template, up to where the reply begins.
        endings: By turn, the tokens that the template ends the reply with.

    Returns:
        The tokens of each reply; None where the chat's tokens are not those of the template.
    """
    ids, replies, begin = list(ids), [], 0
    for index, opening in enumerate(openings):
        if ids[begin : begin + len(opening)] != list(opening):
            return None
        begin += len(opening)
        following = [*endings[index], *(openings[index + 1] if index + 1 < len(openings) else ())]
        # The last reply goes as far as it can, since nothing else follows its ending.
        first = begin if index + 1 < len(openings) else max(begin, len(ids) - len(following))
        ends = range(first, len(ids) - len(following) + 1)
        end = next((end for end in ends if ids[end : end + len(following)] == following), None)
        if end is None:
            return None
        replies.append(ids[begin:end])
        begin = end + len(endings[index])
    return replies if begin == len(ids) else None
