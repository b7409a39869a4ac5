# Every target does its own set-up. `make help` lists them.

GRAPH ?= examples/graphs/consensus.yaml
ARGS ?=
PYTEST_ARGS ?= -n auto
LOCK_ARGS ?=
TOX_ARGS ?=
TINYLLM_PROFILE ?= ci
# Set to measure coverage in the same run: the report is left to `coverage report`.
COV ?=

BENCH_ARGS ?=

BIN := .venv/bin
# What the engine is compared with lives in an environment of its own.
BENCH := .venv-bench
# Where uv is not on the PATH, the rule for this file installs it.
UV := $(or $(shell command -v uv 2>/dev/null),$(BIN)/uv)
PIP_INSTALL = $(UV) pip install --quiet --python $(BIN)/python
# -P keeps `python -m` from putting the repository root on sys.path, from where strategies/ can be imported under a
# second name. pytest adds the root once tests/ is collected, for `tests.support`; ruff bans that import.
PYTEST = TINYLLM_PROFILE=$(TINYLLM_PROFILE) $(BIN)/python -P -m pytest

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help check test test-unit test-chaos test-stress test-integration test-cov test-cov-gate lint types lock bench \
	bench-simulation tox clean
# pytest starts three times slower when it cannot keep its rewritten modules.
unexport PYTHONDONTWRITEBYTECODE

help:  ## list the targets
	@echo "Usage: make TARGET [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' Makefile
	@echo "make ends with 2 whenever a command fails; check and test print the command's own exit code."

check: .venv/main.stamp  ## hunt for faults in GRAPH=file, options in ARGS="--max-examples 50"
	@$(BIN)/tinyllm check "$(GRAPH)" $(ARGS) || \
		{ code=$$?; echo "tinyllm check: exit code $$code (make turns it into 2)" >&2; exit $$code; }

test: .venv/test.stamp  ## all tests, profile ci; options in PYTEST_ARGS="-n 2 -x"; COV=1 measures coverage
	@$(PYTEST) $(if $(COV),--cov --cov-report= --cov-fail-under=0) $(PYTEST_ARGS) || \
		{ code=$$?; echo "pytest: exit code $$code (make turns it into 2)" >&2; exit $$code; }

test-unit test-chaos test-stress test-integration: test-%: .venv/test.stamp
	@$(PYTEST) tests/$* $(PYTEST_ARGS)
test-unit:  ## tests/unit
test-chaos:  ## tests/chaos
test-stress:  ## tests/stress
test-integration:  ## tests/integration: real servers, behind a proxy and between network namespaces

test-cov: .venv/test.stamp  ## all tests with a coverage report on the terminal, in htmlcov/ and in coverage.xml
	@$(PYTEST) --cov --cov-report=term-missing --cov-report=html --cov-report=xml --cov-fail-under=0 $(PYTEST_ARGS)

test-cov-gate: .venv/test.stamp  ## all tests; fails under 80 % branch coverage of src/tinyllm
	@$(PYTEST) --cov --cov-report=term-missing:skip-covered $(PYTEST_ARGS)

lint: .venv/lint.stamp  ## ruff, and the arrows between the modules
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-logo

types: .venv/lint.stamp  ## mypy, strict for src and strategies
	@$(BIN)/mypy

bench: $(BENCH)/stamp  ## the engine side by side with others; options in BENCH_ARGS="--rounds 20"
	@$(BENCH)/bin/python benchmarks/engine.py $(BENCH_ARGS)

bench-simulation: $(BENCH)/stamp  ## the simulated loop side by side with others; BENCH_ARGS="--rounds 20 --runs 1000"
	@$(BENCH)/bin/python benchmarks/simulation.py $(BENCH_ARGS)

tox: .venv/tox.stamp  ## every tox environment, or TOX_ARGS="-e wheel"
	@$(BIN)/tox run $(TOX_ARGS)

clean:  ## remove environments, reports and caches; keep .hypothesis and .tinyllm
	@rm -rf .venv .venv-bench .tox dist htmlcov coverage.xml .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache \
		.import_linter_cache
	@find src strategies tests -name __pycache__ -prune -exec rm -rf {} +

# --- set-up: one stamp per lock file, so that a second run starts at once and a changed lock is installed ---

.venv/main.stamp: requirements/main.txt pyproject.toml | $(UV) $(BIN)/python
	@echo "Installing TinyLLM into .venv" >&2
	@$(PIP_INSTALL) --require-hashes -r requirements/main.txt
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/test.stamp .venv/lint.stamp .venv/tox.stamp: .venv/%.stamp: requirements/%.txt .venv/main.stamp
	@echo "Installing requirements/$*.txt into .venv" >&2
	@$(PIP_INSTALL) --require-hashes -r $<
	@touch $@

# Not locked: the comparison is with the newest there is. Remove the folder to get newer ones.
$(BENCH)/stamp: benchmarks/requirements.txt requirements/main.txt pyproject.toml | $(UV) $(BIN)/python
	@echo "Installing the benchmark's environment into $(BENCH)" >&2
	@$(UV) venv --quiet --allow-existing --python $(BIN)/python $(BENCH)
	@$(UV) pip install --quiet --python $(BENCH)/bin/python -c requirements/main.txt -r benchmarks/requirements.txt \
		--editable .
	@touch $@

$(BIN)/python:
	@for python in $(or $(PYTHON),python3.11 python3 python3.12 python3.13); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			if [ "$(UV)" = $(BIN)/uv ]; then exec $$python -m venv .venv; \
			else exec $(UV) venv --quiet --allow-existing --python "$$(command -v $$python)" .venv; fi; \
		fi; \
	done; \
	echo "TinyLLM needs Python 3.11 or newer: $(if $(PYTHON),$(PYTHON) is not,python3.11 and python3 are not)." \
		"Name one that is: make PYTHON=/path/to/python" >&2; exit 1

$(BIN)/uv: requirements/uv.txt | $(BIN)/python
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# --- the lock: each file holds the one before it, at the same versions ---

COMPILE = $(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url \
	--no-emit-find-links --custom-compile-command "make lock" $(LOCK_ARGS)
MAIN_IN = pyproject.toml --extra testing requirements/main.in

lock: | $(UV)  ## write requirements/*.txt anew; LOCK_ARGS=--upgrade takes newer versions
	@$(COMPILE) $(MAIN_IN) -o requirements/main.txt
	@$(COMPILE) $(MAIN_IN) --extra draw requirements/test.in -c requirements/main.txt -o requirements/test.txt
	@$(COMPILE) $(MAIN_IN) --extra draw requirements/test.in requirements/lint.in -c requirements/test.txt \
		-o requirements/lint.txt
	@$(COMPILE) requirements/uv.in -o requirements/uv.txt
	@$(COMPILE) requirements/tox.in -c requirements/lint.txt -c requirements/uv.txt -o requirements/tox.txt
