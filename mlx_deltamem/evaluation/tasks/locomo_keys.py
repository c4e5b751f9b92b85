"""The questions of LoCoMo with a wrong answer in the file, by a public audit.

The audit is https://github.com/dial481/locomo-audit (February 2026, commit ded8d0f08903, CC BY-NC 4.0). A language
model compared all 1,540 questions that are not adversarial with the conversations, and people reviewed it. It found 99
whose answer, or the question itself, does not agree with the conversation: 33 answers that nobody said, 26 wrong dates,
24 wrong speakers, 13 ambiguous ones and 3 incomplete ones. Only the places of these questions are listed here.
Questions for which the audit found nothing but a wrong place of the evidence are not among them.
"""

import hashlib
from pathlib import Path

# The file that was audited. In another one the places may be those of other questions.
AUDITED_SHA256 = "79fa87e90f04081343b8c8debecb80a9a6842b76a7aa537dc9fdf651ea698ff4"
# By conversation, the places of the questions in the file, counted from 0.
WRONG: dict[str, tuple[int, ...]] = {
    "conv-26": (2, 5, 23, 26, 32, 43, 56, 66, 77, 94, 135, 137, 138, 144, 149),
    "conv-30": (31, 47, 57, 63),
    "conv-41": (48, 63, 68, 69, 129),
    "conv-42": (4, 5, 24, 34, 43, 52, 58, 61, 66, 68, 73, 81, 91, 119),
    "conv-43": (6, 9, 16, 56, 60, 74, 86, 128, 135, 136, 164, 165, 166),
    "conv-44": (2, 4, 5, 18, 37, 41, 57),
    "conv-47": (2, 11, 17, 31, 37, 61, 65, 88),
    "conv-48": (0, 75, 87, 116, 123, 174, 179),
    "conv-49": (4, 18, 24, 33, 36, 37, 43, 54, 74, 80, 102, 103, 106, 144),
    "conv-50": (1, 19, 29, 50, 60, 62, 63, 72, 88, 137, 147, 151),
}


def is_audited(path: Path) -> bool:
    """Whether a file is the one that was audited, byte for byte."""
    return hashlib.sha256(path.read_bytes()).hexdigest() == AUDITED_SHA256


def is_wrong(conversation: str, place: int) -> bool:
    """Whether the audit found that a question, or its answer, does not agree with the conversation."""
    return place in WRONG.get(conversation, ())
