"""Names that commands show and check before they load an adapter."""

# The adapter that the authors of the reference released, under CC-BY-4.0.
REFERENCE_ADAPTER = "declare-lab/delta-mem_qwen3_4b-instruct"

# The options of a training run that name a folder or a repo.
PLACES = ("model", "data", "start")
