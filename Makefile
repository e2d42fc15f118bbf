# Two commands do all the set-up: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test lint types unit bench clean

help:
	@echo "make demo   solve word problems with ETS on the embedded model, against plain sampling"
	@echo "make test   lint, types and the whole test suite"
	@echo "make bench  the benchmarks behind the README's figures"
	@echo "make clean  remove $(VENV) and caches"

$(VENV)/.local: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[local]"
	touch $@

$(VENV)/.dev: $(VENV)/.local
	$(PIP) -e ".[dev]"
	touch $@

demo: $(VENV)/.local
	$(BIN)/python examples/demo.py

test: lint types unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/python -m pytest -q

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/local_engine.py
	$(BIN)/python benchmarks/orchestration.py
	$(BIN)/python benchmarks/sandbox.py
	$(BIN)/python benchmarks/convergence.py --out docs

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
