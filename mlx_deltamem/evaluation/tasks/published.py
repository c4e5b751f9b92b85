"""Published numbers, in percent (facts 5): whose they are, and where they stand.

None of them was measured with this project's code. `condition` says which condition of ours is nearest; "" is for
methods that we do not run. Ablations of the method are left out.
"""

from mlx_deltamem.evaluation.task import Published

_PAPER = "arXiv 2605.12357, main table, Qwen3-4B-Instruct"
_CATEGORIES = "arXiv 2605.12357, table of LoCoMo's categories, Qwen3-4B-Instruct, read through a secondary page"
_NO_CONTEXT = "arXiv 2605.12357, no-context figure, Qwen3-4B-Instruct, read through a secondary page"
_NO_CONTEXT_TEXT = "arXiv 2605.12357, text on the no-context figure (the figure has other numbers)"
_STUDY = (
    "jamesburton/delta-mem-tests, released TSW adapter, Qwen3-4B-Instruct, 3 conversations (δ-mem probably mostly off)"
)
_STUDY_STATE = "jamesburton/delta-mem-tests, appendix A, released TSW adapter, conv-26 only (same caveat)"
_NANOCHAT = "nanochat fork, MLX port, released TSW adapter, Qwen3-4B-Instruct 8-bit, one greedy run"

# Of the main table: the method, our condition, and its columns.
_METHODS = (
    ("backbone", "base"),
    ("BM25 RAG", ""),
    ("LLMLingua-2", ""),
    ("MemoryBank", ""),
    ("Context2LoRA", ""),
    ("MemGen", ""),
    ("MLP Memory", ""),
    ("δ-mem SSW", "full"),
    ("δ-mem TSW", "full"),
    ("δ-mem MSW", "full"),
)


def _column(metric: str, values: tuple[float | None, ...], category: str = "") -> tuple[Published, ...]:
    """A column of the main table, from the first method to the last; None where a method was not run."""
    return tuple(
        Published(method, condition, category, metric, value, _PAPER)
        for (method, condition), value in zip(_METHODS, values, strict=True)
        if value is not None
    )


def _by_category(
    method: str, condition: str, metric: str, source: str, values: dict[str, float]
) -> tuple[Published, ...]:
    return tuple(Published(method, condition, category, metric, value, source) for category, value in values.items())


LOCOMO = (
    *_column("f1", (40.79, 36.68, 40.98, 38.14, 48.11, 40.05, 26.85, 47.05, 46.53, 49.12)),
    *_by_category(
        "δ-mem MSW",
        "full",
        "f1",
        _CATEGORIES,
        {"multi_hop": 42.57, "temporal": 39.31, "open_domain": 18.12, "single_hop": 58.59},
    ),
    Published("backbone", "none", "", "f1", 6.89, _NO_CONTEXT),
    Published("δ-mem", "state", "", "f1", 9.62, _NO_CONTEXT),
    Published("backbone", "none", "", "f1", 3.49, _NO_CONTEXT_TEXT),
    Published("δ-mem", "state", "", "f1", 8.05, _NO_CONTEXT_TEXT),
    Published("backbone", "base", "", "f1", 38.16, _STUDY),
    Published("δ-mem TSW", "full", "", "f1", 37.79, _STUDY),
    *_by_category(
        "backbone",
        "none",
        "f1",
        _STUDY_STATE,
        {"": 5.91, "multi_hop": 3.41, "temporal": 0.36, "open_domain": 14.68, "single_hop": 8.37},
    ),
    *_by_category(
        "δ-mem TSW",
        "state",
        "f1",
        _STUDY_STATE,
        {"": 10.64, "multi_hop": 6.48, "temporal": 7.13, "open_domain": 16.34, "single_hop": 13.35},
    ),
)

MEMORY_AGENT_BENCH = (
    *_column("score", (29.54, 24.49, 15.63, 17.65, 32.53, 29.61, 28.80, 37.84, 36.48, 38.85)),
    *_column("score", (26.14, 9.74, 1.43, 7.67, 29.86, 28.45, 26.00, 50.50, 40.64, 47.29), "test_time_learning"),
)

HOTPOTQA = (
    *_column("em", (42.35, 40.35, 36.93, None, 37.85, 5.36, 10.94, 49.22, 49.41, 46.86)),
    *_column("f1", (56.00, 52.83, 50.03, None, 50.88, 16.27, 25.83, 63.43, 63.66, 60.47)),
    *_by_category("backbone", "none", "em", _NO_CONTEXT, {"": 0.08, "bridge": 0.08}),
    *_by_category("backbone", "none", "f1", _NO_CONTEXT, {"": 8.27, "bridge": 6.25, "comparison": 16.31}),
    *_by_category("δ-mem", "state", "em", _NO_CONTEXT, {"": 6.48, "bridge": 3.97}),
    *_by_category("δ-mem", "state", "f1", _NO_CONTEXT, {"": 15.20, "bridge": 11.05, "comparison": 31.70}),
)

# Of tasks of lm-evaluation-harness, by their names there. Which of IFEval's four accuracies the paper has is not known
# for sure: the strict one of prompts, by a third party's account.
HARNESS = {
    "ifeval": _column("prompt_level_strict_acc", (81.89, None, None, None, 76.71, 39.37, 24.95, 81.70, 82.99, 81.52)),
    "gpqa_diamond": _column(
        "exact_match,flexible-extract", (39.39, None, None, None, 29.29, 38.89, 22.73, 41.41, 40.40, 37.37)
    ),
    "gsm8k": (
        Published("backbone", "base", "", "exact_match,flexible-extract", 76.0, f"{_NANOCHAT}, 200 questions"),
        Published("δ-mem TSW", "full", "", "exact_match,flexible-extract", 81.5, f"{_NANOCHAT}, 200 questions"),
    ),
    "humaneval": (
        Published("backbone", "base", "", "pass@1,create_test", 58.54, f"{_NANOCHAT}, 164 questions"),
        Published("δ-mem TSW", "full", "", "pass@1,create_test", 70.73, f"{_NANOCHAT}, 164 questions"),
    ),
    "arc_easy": (
        Published("backbone", "base", "", "acc", 94.0, _NANOCHAT),
        Published("δ-mem TSW", "full", "", "acc", 94.0, _NANOCHAT),
    ),
    "arc_challenge": (
        Published("backbone", "base", "", "acc", 92.5, _NANOCHAT),
        Published("δ-mem TSW", "full", "", "acc", 92.5, _NANOCHAT),
    ),
    "mmlu": (
        Published("backbone", "base", "", "acc", 60.5, _NANOCHAT),
        Published("δ-mem TSW", "full", "", "acc", 60.0, _NANOCHAT),
    ),
}
