# Every target sets up what it needs: a virtual environment in .venv with pinned versions (constraints.txt).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test quick test-all test-gpu check lint types env clean help

help:           ## this list of targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

env: $(READY)   ## make the virtual environment

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "nsa-lab needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Setting up $(VENV) (torch, transformers, mlflow, ...; a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
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

test: lint      ## lint, types and the quick tests; four minutes on two quiet cores
	@$(MAKE) --no-print-directory --jobs 2 types quick  # mypy's half a minute, the first time, beside the tests

quick: $(READY)
	@$(PYTEST)

test-all: check ## lint, types and all tests, slow ones and whole products of parameters
	@$(PYTEST) --all

test-gpu:       ## the tests that need a GPU, with PYTHON as it is; OUT=FILE names the record
	@$(PYTHON) tests/gpu.py $(if $(OUT),--out $(OUT))

clean:          ## remove the environment and caches, keep runs
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .mypy_cache
