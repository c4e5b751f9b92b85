"""The results of the task `health` with intervals: for `results.json`, for `report.md` and for the terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from mlx_deltamem.evaluation.markdown import table
from mlx_deltamem.evaluation.statistics import Bootstrap, Estimate, mean_interval
from mlx_deltamem.evaluation.tasks.health import MEANINGS, REPLY_TOKENS, Answered, Checkup, Losses, perplexity_ratio
from mlx_deltamem.evaluation.tasks.registry import HEALTH
from mlx_deltamem.show.progress import Counted
from mlx_deltamem.show.tables import columns

# The steps of `examine`, for the progress bar.
STEPS = ("perplexity", "replies", "likeliest tokens")
_NOTES = """A ratio of 1 means that the model predicts these texts as well as without the adapter; a larger ratio means
worse. Replies are greedy and of at most {tokens} tokens, to everyday prompts with nothing told before. The likeliest
tokens are compared at each place of the frozen model's replies. The 95 % intervals are of a bootstrap over texts and
over prompts; if all replies are alike or none is, they are of a binomial distribution."""


@dataclass(frozen=True)
class PerplexityRatio:
    """The perplexity of some texts divided by the frozen model's.

    Attributes:
        value: The ratio; infinite if the model's logits are not finite.
        low, high: The 95 % interval.
        texts: The number of texts.
    """

    value: float
    low: float
    high: float
    texts: int


@dataclass(frozen=True)
class Health:
    """The effect of an adapter on its model.

    Attributes:
        ratios: The ratios of perplexities, by way (`health.WAYS`).
        equal: The share of replies that equal the frozen model's, in percent of the prompts.
        alike: The share of places in the frozen model's replies where both models have the same likeliest token, in
            percent.
        replies: All replies.
    """

    ratios: Mapping[str, PerplexityRatio]
    equal: Estimate
    alike: Estimate
    replies: Sequence[Answered]


def examine(checkup: Checkup, seed: int, progress: Counted) -> Health:
    """Do all measurements of a checkup.

    Args:
        checkup: The measurements of the model.
        seed: The seed of the bootstrap.
        progress: Called with the name of the step, and 0 before and 1 after each of `STEPS`.
    """
    perplexity, reply, likeliest = (f"{HEALTH}, {step}" for step in STEPS)
    progress(perplexity, 0)
    losses = checkup.losses()
    progress(perplexity, 1)
    progress(reply, 0)
    replies = checkup.replies()
    progress(reply, 1)
    progress(likeliest, 0)
    alike = checkup.alike()
    progress(likeliest, 1)
    return Health(
        ratios=ratios(losses, seed),
        equal=_share([[each.equal] for each in replies], seed),
        alike=_share(alike, seed),
        replies=replies,
    )


def ratios(losses: Losses, seed: int) -> dict[str, PerplexityRatio]:
    """The ratios of perplexities by way, with intervals of a bootstrap over the texts."""
    found = {}
    for way, value in losses.ratios.items():
        low, high = mean_interval(losses.adapted[way] - losses.frozen, losses.tokens, seed)
        found[way] = PerplexityRatio(value, perplexity_ratio(low), perplexity_ratio(high), len(losses.tokens))
    return found


def health_document(health: Health) -> dict[str, object]:
    """The results for `results.json`. An infinite ratio is null there."""
    return {
        "perplexity": [
            {
                "memory": way,
                "meaning": MEANINGS[way],
                "ratio": finite(ratio.value),
                "interval": [finite(ratio.low), finite(ratio.high)],
                "texts": ratio.texts,
            }
            for way, ratio in health.ratios.items()
        ],
        "replies_equal": _share_document(health.equal, len(health.replies)),
        "tokens_alike": _share_document(health.alike, len(health.replies)),
        "replies": [
            {"prompt": each.prompt, "frozen": each.frozen.text, "adapted": each.adapted.text, "equal": each.equal}
            for each in health.replies
        ],
    }


def health_section(health: Health) -> str:
    """The results for `report.md`."""
    rows = [
        (MEANINGS[way], f"{each.value:.3f} ({each.low:.3f} to {each.high:.3f})", each.texts)
        for way, each in health.ratios.items()
    ]
    shares = [
        (name, f"{each.value:.1f} ({each.low:.1f} to {each.high:.1f})", each.questions)
        for name, each in (("replies that are equal, %", health.equal), ("likeliest tokens alike, %", health.alike))
    ]
    replies = [("yes" if each.equal else "no", *_lines(each)) for each in health.replies]
    return "\n\n".join(
        [
            "## What the adapter does to the model",
            table(("the text is", "perplexity ÷ the frozen model's", "texts"), rows),
            table(("with nothing told", "as the frozen model", "of"), shares),
            _NOTES.format(tokens=REPLY_TOKENS),
            "### Replies",
            table(("equal", "prompt", "frozen", "with the adapter"), replies),
        ]
    )


def health_tables(health: Health) -> list[Table]:
    """The results for the terminal."""
    perplexity = columns(
        "Perplexity of plain English ÷ the frozen model's", "a text that is", "ratio", "95 %", texts=(0,)
    )
    for way, ratio in health.ratios.items():
        perplexity.add_row(MEANINGS[way], f"{ratio.value:.3f}", f"{ratio.low:.2f}–{ratio.high:.2f}")
    title = f"Greedy replies to {len(health.replies)} prompts with nothing told, in percent"
    replies = columns(title, "as the frozen model", "", "95 %", texts=(0,))
    for name, share in (("whole replies", health.equal), ("the likeliest token at each place", health.alike)):
        replies.add_row(name, f"{share.value:.1f}", f"{share.low:.0f}–{share.high:.0f}")
    return [perplexity, replies]


def _share(groups: Sequence[Sequence[bool]], seed: int) -> Estimate:
    """The share of all members that are True, in percent. The bootstrap draws groups as a whole."""
    names = [f"{number:04}" for number, group in enumerate(groups) for _ in group]
    return Bootstrap(np.array([[float(each) for group in groups for each in group]]), names, seed).mean(0)


def _share_document(share: Estimate, prompts: int) -> dict[str, object]:
    return {"value": share.value, "interval": [share.low, share.high], "prompts": prompts}


def finite(value: float) -> float | None:
    """Return the value, or None if it is not finite, for which JSON has no number."""
    return value if math.isfinite(value) else None


def _lines(each: Answered) -> list[str]:
    """The prompt and both replies, each on one line."""
    return [" ".join(text.split()) for text in (each.prompt, each.frozen.text, each.adapted.text)]
