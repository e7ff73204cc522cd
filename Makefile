# Every target but `venv` runs with the tools of .venv, which is made again when pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
JOBS ?= 2
BENCH ?= spine --peers xla torch

# Without a driver JAX would log at length that the CUDA plugin, installed for lowering, cannot start.
ifeq ($(wildcard /dev/nvidia0 /proc/driver/nvidia/version),)
export JAX_PLATFORMS ?= cpu
endif

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow test-all test-gpu lint format bench report clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

venv: .venv/.ready ## Make .venv with jaxorch and its development tools

.venv/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 12) or sys.exit("Python 3.12 or newer is needed, found %d.%d; set PYTHON=" % v[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: venv ## Show a plan and its result on a small model
	$(BIN)/python -m examples.demo

test: venv ## Fast tests on the CPU (minutes on two cores)
	$(PYTEST) -n $(JOBS) -m 'not gpu and not slow'

test-slow: venv ## The slow tests alone, on the CPU
	$(PYTEST) -n $(JOBS) -m 'slow and not gpu'

test-all: test test-slow ## Fast and slow tests on the CPU

test-gpu: venv ## Tests that need a CUDA device; fails where there is none
	JAXORCH_REQUIRE_GPU=1 $(PYTEST) -m gpu

lint: venv ## ruff, ruff format and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: venv ## Put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: venv ## Benchmarks on this machine's device, of what BENCH says (docs/benchmarks.md)
	$(BIN)/python -m benchmarks $(BENCH)

report: venv ## The tables and the picture of the results that are kept
	$(BIN)/python -m benchmarks.report --write

clean: ## Remove .venv and what the tools leave behind
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
