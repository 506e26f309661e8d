# Every target sets up what it needs: a virtual environment in .venv with pinned versions (constraints.txt), and for
# lmms-eval, which wants older ones of some, another in .venv-eval (constraints-eval.txt).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EVAL := .venv-eval
EVAL_BIN := $(EVAL)/bin
EVAL_READY := $(EVAL)/.ready

NEW_ENOUGH := $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "nsa-lab needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11"; exit 2; }

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test quick test-all test-eval test-gpu check lint types env eval clean help

help:           ## this list of targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

env: $(READY)   ## make the virtual environment

$(READY): pyproject.toml constraints.txt
	@$(NEW_ENOUGH)
	@echo "Setting up $(VENV) (torch, transformers, mlflow, ...; a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

eval: $(EVAL_READY) ## make the environment with lmms-eval, for nsa-lab benchmark

$(EVAL_READY): pyproject.toml constraints-eval.txt
	@$(NEW_ENOUGH)
	@echo "Setting up $(EVAL) (lmms-eval and what it needs, some 200 packages; several minutes the first time)"
	@test -x $(EVAL_BIN)/python || $(PYTHON) -m venv $(EVAL)
	@$(EVAL_BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints-eval.txt --editable '.[dev,eval]'
	@$(EVAL_BIN)/python -c 'import torchvision' 2>/dev/null || { \
	  echo "torchvision is built for another torch, and then no model of transformers loads; removing it, nothing here needs it"; \
	  $(EVAL_BIN)/python -m pip uninstall --quiet --yes torchvision; }
	@touch $@

demo: $(READY)  ## sweep small designs on real video files and show the Pareto front
	@$(BIN)/nsa-lab sweep sweeps/demo.py --trials 8 --workers 2
	@echo "Open the MLflow page of these runs with:  $(BIN)/nsa-lab ui"

check: lint types ## style and types

lint: $(READY)  ## style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY) ## types
	@$(BIN)/mypy

test: lint      ## lint, types and the quick tests; some six to ten minutes on two quiet cores
	@$(MAKE) --no-print-directory --jobs 2 types quick  # mypy's half a minute, the first time, beside the tests

quick: $(READY)
	@$(PYTEST)

test-all: check test-eval ## lint, types and all tests, slow ones, whole products of parameters, and benchmarks
	@$(PYTEST) --all

test-eval: $(EVAL_READY) ## benchmarks in small through lmms-eval, and videos under the PyAV that it wants
	@OMP_NUM_THREADS=1 $(EVAL_BIN)/python -m pytest tests/data
	@OMP_NUM_THREADS=1 $(EVAL_BIN)/python -m pytest --all tests/benchmark

test-gpu:       ## the tests that need a GPU, with PYTHON as it is; OUT=FILE names the record
	@$(PYTHON) tests/gpu.py $(if $(OUT),--out $(OUT))

clean:          ## remove the environment and caches, keep runs
	rm -rf $(VENV) $(EVAL) .cache .pytest_cache .ruff_cache .mypy_cache
