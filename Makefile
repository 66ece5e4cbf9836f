# make demo       install, compile the shipped model for this CPU, certify the shipped images
# make test       install what tests need, check style, run the quick tests
# make test-slow  the tests that take longer
#
# PYTHON names the interpreter for .venv; PIP_FLAGS goes to pip (for example another index for CPU builds of torch).

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
PIP_FLAGS ?=
JOBS ?= 2

BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --editable

# Tests and the demo share their cores between processes and threads of their own.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: .venv/.installed
	mkdir -p build
	rm -f build/demo.tsv build/demo.json
	$(BIN)/intcert compile demo --target host --sigma 0.25 -o build/demo.intcert
	$(BIN)/intcert certify build/demo.intcert --data demo --n 10000 --max 10 -o build/demo.tsv

test: lint
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) -q

test-slow: .venv/.installed-dev
	$(BIN)/python -m pytest -m slow -n $(JOBS) -q

lint: .venv/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

clean:
	rm -rf .venv build

# A stamp for each set of packages, so that pip runs again only when pyproject.toml changes. The set dev includes torch.
.venv/.installed: pyproject.toml | .venv/bin/python
	@test -e .venv/.installed-dev -a .venv/.installed-dev -nt pyproject.toml || { \
		echo "installing intcert and CPU torch into .venv (a few minutes the first time)"; $(INSTALL) '.[torch]'; }
	@touch $@

.venv/.installed-dev: pyproject.toml | .venv/bin/python
	@echo "installing intcert and its test tools into .venv (a few minutes the first time)"
	@$(INSTALL) '.[dev]'
	@touch $@ .venv/.installed

.venv/bin/python:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: intcert needs Python 3.11 or newer; install it, or name one: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	@command -v gcc >/dev/null || { echo "error: intcert links its kernels with gcc; install it" >&2; exit 1; }
	$(PYTHON) -m venv .venv
