# `make demo` and `make test` do all the set-up, each on a fresh machine.
PYTHON ?= python3
# MLX for this platform: Metal on a Mac; elsewhere `make MLX=cuda13 ...` for an NVIDIA GPU.
MLX ?= $(if $(filter Darwin,$(shell uname -s)),,cpu)
VENV := .venv
BIN := $(VENV)/bin

comma := ,
EXTRAS := test,plot$(if $(MLX),$(comma)$(MLX))

.PHONY: demo test gpu-test lint adapters bench clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python -m tools.demo

test: $(VENV)/installed
	$(BIN)/python -m tools.smollm2
	$(BIN)/python -m pytest -n 2

# On a Mac, or `make MLX=cuda13 gpu-test`: the kernels on the GPU, then what they cost.
gpu-test: $(VENV)/installed
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m mlx_deltamem.benchmark --shape qwen3-4b

lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check

adapters: $(VENV)/installed
	$(BIN)/python -m tools.adapters

# Minutes, on a machine that does nothing else: timings are no tests.
bench: $(VENV)/installed
	$(BIN)/python -m tools.bench

clean:
	rm -rf $(VENV) .cache
