"""The model card of an adapter: the README.md of its folder."""

from huggingface_hub import ModelCardData

from mlx_deltamem.config import DeltaMemConfig

_PAPER = "2605.12357"


def card_text(config: DeltaMemConfig, parameters: int, metadata: dict[str, str]) -> str:
    """The text of a new card.

    Args:
        config: The adapter's configuration.
        parameters: How many numbers its weights are.
        metadata: Its provenance, as in the safetensors file.
    """
    header = ModelCardData(library_name="mlx", tags=["mlx", "delta-mem", "memory", f"arxiv:{_PAPER}"]).to_yaml()
    rows = {
        "rank": config.rank,
        "state heads": config.num_state_heads,
        "corrected": ", ".join(config.delta_heads) or "nothing",
        "written": config.memory_write_granularity,
        "parameters": f"{parameters:,}",
    } | {name.replace("_", " "): value for name, value in metadata.items() if name.startswith("converted")}
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
{header}
---

# A δ-mem adapter

An online memory for a frozen language model ([arXiv {_PAPER}](https://arxiv.org/abs/{_PAPER})), for mlx_deltamem.

| | |
|---|---|
{table}

```shell
pip install mlx-deltamem
mlx_deltamem.generate --model BACKBONE --adapter THIS_FOLDER_OR_REPO --prompt "Hello"
```
"""
