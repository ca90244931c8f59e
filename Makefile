# Everything a newcomer needs: `make` lists it. Needs Python 3.11 or newer, Go and make; all else is fetched.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST ?= $(BIN)/pytest
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/equipoise
EXTRAS := operator sidecar simulator demo dev

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(VENV)/.ready ## Make .venv with the command `equipoise` and everything for development

$(VENV)/.ready: requirements/dev.txt requirements/bootstrap.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "equipoise needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@echo "setup 1/3: virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "setup 2/3: packages of requirements/dev.txt, 0.6 GB: up to a few minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt
	@echo "setup 3/3: the command $(BIN)/equipoise"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: cluster
cluster: setup ## Build or find the Kubernetes binaries that demo and tests use
	@$(BIN)/equipoise cluster build

.PHONY: demo
demo: setup ## Show on a real control plane what fairness buys and what Equipoise adds: one traffic under FCFS, VTC and Equipoise
	@$(BIN)/equipoise demo $(DEMO_ARGS)

.PHONY: test
test: check test-unit test-cluster test-e2e ## Run every check and test
	@echo "all checks and tests passed"

.PHONY: check
check: setup ## Lint, types, import rules, generated files, dependency files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/equipoise crds --check

.PHONY: test-unit
test-unit: setup ## Unit and property tests
	$(PYTEST) tests/unit tests/property

.PHONY: search
search: setup ## Property tests on new random cases, many more than `make test` has
	$(PYTEST) --hypothesis-profile search tests/property

.PHONY: test-cluster
test-cluster: cluster ## Tests on a real API server, with helm
	$(PYTEST) tests/integration

.PHONY: test-e2e
test-e2e: cluster ## The demo, images, and real vLLM on the CPU
	$(PYTEST) tests/e2e

.PHONY: fix
fix: setup ## Format, and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: report
report: setup ## Simulate every scheduler on the papers' loads and write docs/report (traces: see benchmarks/traces.py)
	$(BIN)/python -m benchmarks.report

.PHONY: requirements
requirements: setup ## Renew the hashed requirement files from pyproject.toml
	@echo uv | $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 - -o requirements/bootstrap.txt
	@for extra in $(EXTRAS); do \
	    $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
	        --no-emit-package equipoise --extra $$extra pyproject.toml -o requirements/$$extra.txt; \
	done

.PHONY: clean
clean: ## Remove the virtual environment, what tools left, and the report of `make demo`
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist report

.PHONY: clean-cache
clean-cache: ## Remove built binaries, vLLM's environment and images from the cache
	rm -rf "$(CACHE)"
