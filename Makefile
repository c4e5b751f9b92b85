# `make demo` and `make test` do all the set-up, each on a fresh machine.
PYTHON ?= python3
# MLX for this platform: Metal on a Mac; elsewhere `make MLX=cuda13 ...` for an NVIDIA GPU.
MLX ?= $(if $(filter Darwin,$(shell uname -s)),,cpu)
VENV := .venv
BIN := $(VENV)/bin
# One for each kind of MLX, so that asking for another one installs it.
INSTALLED := $(VENV)/installed-$(or $(MLX),metal)

comma := ,
EXTRAS := test,plot$(if $(MLX),$(comma)$(MLX))

.PHONY: demo test gpu-test lint adapters bench clean

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	rm -f $(VENV)/installed-*
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m tools.demo

test: $(INSTALLED)
	$(BIN)/python -m tools.smollm2
	$(BIN)/python -m pytest -n 2

# On a Mac, or `make MLX=cuda13 gpu-test`: the kernels on the GPU, then what they cost.
gpu-test: $(INSTALLED)
	@$(BIN)/python -c "import sys; from mlx_deltamem.recurrence.kernels.build import gpu_language as gpu; sys.exit(None if gpu() else 'MLX finds no GPU here; on Linux with an NVIDIA GPU run: make MLX=cuda13 gpu-test')"
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m mlx_deltamem.benchmark --shape qwen3-4b

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

adapters: $(INSTALLED)
	$(BIN)/python -m tools.adapters

# Minutes, on a machine that does nothing else: timings are no tests.
bench: $(INSTALLED)
	$(BIN)/python -m tools.measure.bench

clean:
	rm -rf $(VENV) .cache
