# winback: every target makes the virtual environment .venv first when it is missing or out of date.
# Another interpreter than python3: make PYTHON=python3.12 demo

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

# Data, logs and reports of demo and up.
export WINBACK_DATA_DIR := $(CURDIR)/.winback

.DEFAULT_GOAL := help
.PHONY: help demo test lint up bench clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## Run winback once on a real grocer's year and show the result
	$(BIN)/winback demo

test: $(INSTALLED)  ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile  # two cores; a file shares its databases

lint: $(INSTALLED)  ## Check style, types (strict) and SQL
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=.venv/typing $(BIN)/mypy --strict -p winback.operators -p winback.models -p winback.expectations
	$(BIN)/sqlfluff lint dbt_project

up: $(INSTALLED)  ## Start Postgres, Redis and Airflow with its pages, until Ctrl-C
	$(BIN)/winback up

bench: $(INSTALLED)  ## Measure every step beside today's tools; hours (BENCH="--quick": minutes)
	$(BIN)/winback bench $(BENCH) -o docs/benchmarks.md

clean:  ## Remove the virtual environment, caches and build results
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	rm -rf dbt_project/target dbt_project/logs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "winback needs Python 3.10 or newer, and '$(PYTHON)' is none." \
	        "Name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing winback and what it needs into .venv: about 2 GB, some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,dev,bench]'
	mkdir -p .venv/typing && ln -sfn ../.. .venv/typing/winback  # mypy finds ./operators as winback.operators
	touch $@
