# What a person types; every target makes what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests that need no database or system of their own are not apart: one command runs what is quick.
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-all lint format generated bench bench-all clean servers redis deb

demo: $(VENV)/installed
	$(BIN)/workerd demo

test: $(VENV)/tested servers
	$(PYTEST) -m "not slow"

test-all: $(VENV)/tested servers
	$(PYTEST)

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# etc/workerd.toml and docs/reference, from the source.
generated: $(VENV)/installed
	$(BIN)/python -m docs.generate

# Debian's packages: the server without its service, a browser for the dashboard's tests.
servers:
	@sh tests/support/install-servers

# What the README shows, at most 12 minutes on 2 cores; results and report in benchmarks/results.
bench: $(VENV)/compared servers redis
	$(BIN)/python -m benchmarks.run

# What most of the peers need.
redis:
	@command -v redis-server >/dev/null || apt-get install -y -qq redis-server

# Every case, hours.
bench-all: $(VENV)/compared servers redis
	$(BIN)/python -m benchmarks.run --all

# dist/workerd_VERSION_ARCH.deb, for the Python that this Debian has.
deb:
	PYTHON=/usr/bin/python3 packaging/build-deb

$(VENV)/installed: pyproject.toml
	@sh tests/support/need-python $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	@touch $@

$(VENV)/compared: $(VENV)/tested
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[peers]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
