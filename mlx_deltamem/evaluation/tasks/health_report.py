"""The findings of the task `health`, with intervals: as a part of `results.json`, and as a section of `report.md`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_deltamem.evaluation.markdown import table
from mlx_deltamem.evaluation.statistics import Bootstrap, Estimate, mean_interval
from mlx_deltamem.evaluation.tasks.health import MEANINGS, REPLY_TOKENS, Answered, Checkup, Losses, perplexity_ratio
from mlx_deltamem.show.progress import Counted

NAME = "health"
# What `examine` tells of as it goes on.
STEPS = ("perplexity", "replies", "likeliest tokens")
_NOTES = """At a ratio of 1 the model foretells these texts as well as without the adapter; above it, worse. Replies
are greedy and of at most {tokens} tokens, to everyday prompts with nothing told before. The likeliest tokens are
compared at each place of the frozen model's replies. The 95 % intervals are of a bootstrap over texts and over
prompts; where all replies are alike or none is, of a binomial distribution."""


@dataclass(frozen=True)
class Ratio:
    """The perplexity of some texts divided by the frozen model's.

    Attributes:
        value: The ratio; infinite where the model says numbers that are not finite.
        low, high: Its 95 % interval.
        texts: How many there are.
    """

    value: float
    low: float
    high: float
    texts: int


@dataclass(frozen=True)
class Health:
    """What an adapter does to its model.

    Attributes:
        ratios: By way, see `MEANINGS`.
        equal: Replies that are the frozen model's, in percent of the prompts.
        alike: Tokens of the frozen model's replies that are the likeliest with the adapter too, in percent.
        replies: All replies.
    """

    ratios: Mapping[str, Ratio]
    equal: Estimate
    alike: Estimate
    replies: Sequence[Answered]


def examine(checkup: Checkup, seed: int, progress: Counted) -> Health:
    """Measure all of it.

    Args:
        checkup: Of the model.
        seed: Of the bootstrap.
        progress: Told what is going on, one step for each of `STEPS`.
    """
    found = []
    for step, measure in zip(STEPS, (checkup.losses, checkup.replies, checkup.alike), strict=True):
        progress(f"{NAME}, {step}", 0)
        found.append(measure())
        progress(f"{NAME}, {step}", 1)
    losses, replies, alike = found
    return Health(
        ratios=ratios(losses, seed),
        equal=_share([[each.equal] for each in replies], seed),
        alike=_share(alike, seed),
        replies=replies,
    )


def ratios(losses: Losses, seed: int) -> dict[str, Ratio]:
    """The ratios by way, with intervals by a bootstrap over texts."""
    found = {}
    for way, value in losses.ratios.items():
        interval = mean_interval(losses.adapted[way] - losses.frozen, losses.tokens, seed)
        found[way] = Ratio(value, *map(perplexity_ratio, interval), len(losses.tokens))
    return found


def health_document(health: Health) -> dict[str, object]:
    """The findings for `results.json`; a ratio that is infinite is null."""
    return {
        "perplexity": [
            {
                "memory": way,
                "meaning": MEANINGS[way],
                "ratio": _finite(ratio.value),
                "interval": [_finite(ratio.low), _finite(ratio.high)],
                "texts": ratio.texts,
            }
            for way, ratio in health.ratios.items()
        ],
        "replies_equal": _shown(health.equal, len(health.replies)),
        "tokens_alike": _shown(health.alike, len(health.replies)),
        "replies": [
            {"prompt": each.prompt, "frozen": each.frozen.text, "adapted": each.adapted.text, "equal": each.equal}
            for each in health.replies
        ],
    }


def health_section(health: Health) -> str:
    """The findings for `report.md`."""
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


def _share(groups: Sequence[Sequence[bool]], seed: int) -> Estimate:
    """The share of all members that are True, in percent; groups are drawn as a whole."""
    names = [f"{number:04}" for number, group in enumerate(groups) for _ in group]
    return Bootstrap(np.array([[float(each) for group in groups for each in group]]), names, seed).mean(0)


def _shown(share: Estimate, prompts: int) -> dict[str, object]:
    return {"value": share.value, "interval": [share.low, share.high], "prompts": prompts}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _lines(each: Answered) -> tuple[str, ...]:
    return tuple(" ".join(text.split()) for text in (each.prompt, each.frozen.text, each.adapted.text))
