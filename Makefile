# Targets for developers; each builds what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Each process has its database server of its own; the tests of a file share daemons. One more process than there are
# processors, since many tests wait.
PARALLEL := -n $(shell expr $$(nproc) + 1) --maxprocesses 4 --dist loadfile

.PHONY: demo examples test test-all test-django6 lint format generated docs docs-check bench bench-all clean servers redis deb image

demo: $(VENV)/installed
	$(BIN)/workerd demo

# Complete small programs, each with a daemon of its own; `python -m examples NAME` runs one.
examples: $(VENV)/tested
	$(BIN)/python -m examples
	$(BIN)/python -m examples --all

test: $(VENV)/tested servers
	$(PYTEST) $(PARALLEL) -m "not slow"

test-all: $(VENV)/tested servers
	@sh tests/support/test-django6 $(VENV) $(VENV)-django6 prepare
	$(PYTEST) $(PARALLEL)

# The tests of Django's tasks on Django 6, where the host has a Python for it; `make test` runs them on 5.2.
test-django6: $(VENV)/tested servers
	@sh tests/support/test-django6 $(VENV) $(VENV)-django6

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m docs.generate --check

format: $(VENV)/tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Generate etc/workerd.toml and docs/reference from the source.
generated: $(VENV)/tested
	$(BIN)/python -m docs.generate

# The documentation as a site, in docs/_build/html; a warning is an error.
docs: $(VENV)/tested
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

# Every block of code in the documentation, and the site.
docs-check: $(VENV)/tested servers
	$(PYTEST) tests/docs

# Install the database server (without its service) and the browser that the tests start.
servers:
	@sh tests/support/install-servers

# The cases shown in docs/explanation/measured.md: at most 12 minutes on 2 cores; results and report in benchmarks/results.
bench: $(VENV)/compared servers redis
	$(BIN)/python -m benchmarks.run

# Broker of most compared projects.
redis:
	@command -v redis-server >/dev/null || apt-get install -y -qq redis-server

# Every case; takes hours.
bench-all: $(VENV)/compared servers redis
	$(BIN)/python -m benchmarks.run --all

# Build dist/workerd_VERSION_ARCH.deb for the Python of this Debian.
deb:
	PYTHON=/usr/bin/python3 packaging/build-deb

# Build the image workerd:VERSION with podman, or docker; BASE is the image below it.
image:
	packaging/container/build $(if $(BASE),--build-arg BASE=$(BASE))

$(VENV)/installed: pyproject.toml
	@sh tests/support/need-python $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,lint,docs]'
	@touch $@

$(VENV)/compared: $(VENV)/tested
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[peers]'
	@touch $@

clean:
	rm -rf docs/_build $(VENV) $(VENV)-django6 build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
