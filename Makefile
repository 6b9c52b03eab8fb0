# make setup  a .venv from pyproject.toml and constraints.txt; does nothing when it is current
# make demo   the whole chain on the embedded data: dvc repro, then the table, the champion and the report
# make test   the test suite with coverage
# make check  what CI runs beside the tests: lint, types, import rules, generated files
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.current

.PHONY: setup demo test check format compile clean

setup: $(STAMP)

# The stamp is written last, so an interrupted installation starts again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11: make setup PYTHON=python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --quiet \
		--constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	PATH="$(abspath $(BIN)):$$PATH" dvc repro
	$(BIN)/mdpr summary

test: setup
	$(BIN)/python -m pytest --cov --cov-report=term

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pipelines.training --check
	$(BIN)/python -m components.readme --check

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compile: setup
	$(BIN)/python -m pipelines.training
	$(BIN)/python -m components.readme --write

clean:
	rm -rf $(VENV)
