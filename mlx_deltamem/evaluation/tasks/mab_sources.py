"""The sources of MemoryAgentBench: the split each is in, its score and how long its replies may be (facts 4.2)."""

from dataclasses import dataclass
from typing import Literal

Metric = Literal["accuracy", "f1", "recall@5"]

SPLITS = {
    "Accurate_Retrieval": "accurate_retrieval",
    "Test_Time_Learning": "test_time_learning",
    "Long_Range_Understanding": "long_range_understanding",
    "Conflict_Resolution": "selective_forgetting",
}


@dataclass(frozen=True)
class Source:
    """A kind of rows.

    Attributes:
        prefix: What the names of its rows' sources begin with.
        split: The split it is in, as the data set calls it.
        metric: What its replies are scored by.
        max_tokens: The longest reply, in tokens.
    """

    prefix: str
    split: str
    metric: Metric
    max_tokens: int


SOURCES = (
    Source("ruler_qa", "Accurate_Retrieval", "accuracy", 50),
    Source("longmemeval_s", "Accurate_Retrieval", "accuracy", 50),
    Source("eventqa_", "Accurate_Retrieval", "accuracy", 40),
    Source("icl_", "Test_Time_Learning", "accuracy", 20),
    Source("recsys_", "Test_Time_Learning", "recall@5", 300),
    Source("infbench_sum", "Long_Range_Understanding", "f1", 1200),
    Source("detective_qa", "Long_Range_Understanding", "accuracy", 2000),
    Source("factconsolidation_", "Conflict_Resolution", "accuracy", 10),
)


def find_source(name: str) -> Source:
    """The kind of a row, by its `metadata.source`.

    Raises:
        ValueError: There is no such source.
    """
    for source in SOURCES:
        if name.startswith(source.prefix):
            return source
    known = ", ".join(source.prefix + "..." for source in SOURCES)
    raise ValueError(f"there is no source {name!r} in MemoryAgentBench; expected one of {known}")
