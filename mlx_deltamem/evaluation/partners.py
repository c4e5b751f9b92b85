"""The history that lends its memory to each history under the condition `shuffled`."""

from collections.abc import Sequence

import numpy as np

# `shuffled` takes the memory of one of this many preceding groups. The number is small because similar histories often
# follow each other, and so all memories are used about equally often.
_NEAR = 8


def partner_groups(groups: Sequence[str], seed: int) -> dict[str, str]:
    """Choose the group that lends its memory to each group under `shuffled`.

    It is drawn from the few groups just before it; the first group takes the second. Later groups have no influence
    (except the second on the first), so a run can be continued with more questions.

    Args:
        groups: The names of the groups, in order.
        seed: The seed of the draw.

    Returns:
        By group, the other group.

    Raises:
        ValueError: There is only one group.
    """
    if len(groups) < 2:
        raise ValueError(
            "shuffled needs the memory of another history, but all questions are about the same one; ask more "
            "questions, or leave shuffled out of --conditions"
        )
    generator = np.random.default_rng(seed)
    drawn = {
        group: groups[int(generator.integers(max(0, place - _NEAR), place))]
        for place, group in enumerate(groups)
        if place
    }
    return {groups[0]: groups[1], **drawn}
