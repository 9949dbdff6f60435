# `make quickstart` and `make test` are all a fresh machine needs: Python 3.11 or later, and a package index.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test
# A file of versions to install, and further options of pytest: what CI sets.
CONSTRAINTS ?=
PYTEST_ARGS ?=
BIN := $(VENV)/bin
# Compiled programs are kept between runs, so that the second start is quick.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.5
# The tests come in an order in which the workers end together.
WORKERS := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: setup quickstart test test-fast test-ci test-long lint benchmark study real docs clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "reft_jax needs Python 3.11 or later")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]' $(CONSTRAINTS:%=--constraint %)
	touch $@

quickstart: setup
	run=runs/quickstart-$$(date +%Y%m%d-%H%M%S) && \
	$(BIN)/python -m reft_jax.train --config configs/quickstart.yaml --run_dir $$run && \
	$(BIN)/python -m reft_jax.report $$run --out $$run/report.html

test: setup lint
	$(BIN)/python -m pytest -m 'not long and not ci' $(WORKERS) $(PYTEST_ARGS)

test-fast: setup
	$(BIN)/python -m pytest -m 'not long and not ci and not compiles' $(WORKERS)

test-ci: setup
	$(BIN)/python -m pytest -m ci $(WORKERS) $(PYTEST_ARGS)

test-long: setup
	$(BIN)/python -m pytest -m long $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: setup
	$(BIN)/python -m benchmarks.throughput

study: setup
	$(BIN)/python -m pip install --quiet --editable '.[figures]'
	$(BIN)/python -m benchmarks.study
	$(BIN)/python -m benchmarks.family

# Needs three files in the folder REFT_DATA, or `data`; without them it says which, and where to download them.
real: setup
	$(BIN)/python -m pip install --quiet --editable '.[figures]'
	$(BIN)/python -m benchmarks.real
	$(BIN)/python -m benchmarks.dip

# The site, in site/; a link that leads nowhere ends it.
docs: setup
	$(BIN)/python -m pip install --quiet --editable '.[docs]' $(CONSTRAINTS:%=--constraint %)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo site/index.html

clean:
	rm -rf $(VENV) .cache site
