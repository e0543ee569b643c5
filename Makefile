# Everything works in a fresh checkout with Python >= 3.11 and make; the first call of a target
# makes the virtual environment it needs, later ones find it there.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS := requirements/constraints.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# What is installed is noted in these two files; they are older than what asks for more.
RUNTIME := $(VENV)/.counterpoint-runtime
DEV := $(VENV)/.counterpoint-dev

# The oldest versions that pyproject.toml allows. Where they cannot be had, or are too large (on
# Linux pip brings torch for CUDA), name another one: make floors FLOOR_TORCH=torch==2.13.0
FLOOR_VENV ?= .venv-floors
FLOORS := $(FLOOR_VENV)/.counterpoint-floors
FLOOR_TORCH ?=
# There experts are refused (CP313: Qwen3-MoE's routers gave probabilities), and PEFT warns as it saves.
FLOOR_TESTS := tests/house/test_seams.py tests/house/test_golden.py tests/trainer/test_hooks.py \
	tests/reliability/test_resuming.py -k 'not experts and not adapter'

# The tests' models are so small that a second thread only waits, forty times as long under load.
test check torture golden floors: export OMP_NUM_THREADS := $(or $(OMP_NUM_THREADS),1)

# Processes that share the tests, a core each; 0 for one that a debugger can stop.
WORKERS ?= auto

# Each process has a half of the tests and, when it is done, some of another's: so the fixtures of
# a module, some of which start processes, are made once.
SHARED = -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help quickstart test check torture bench docs site golden floors constraints hooks clean

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) | \
		awk -F@ '{ printf "%-20s %s\n", $$1, $$2 }'

quickstart: $(RUNTIME) ## train a tiny translation model: no network, no GPU, about a minute
	$(BIN)/counterpoint quickstart

test: $(DEV) ## every test
	$(BIN)/python -m pytest $(SHARED) $(ARGS)

check: $(DEV) ## what CI runs: format, lint, types, imports, docs, every test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate_docs.py --check
	$(BIN)/python -m pytest $(SHARED)
	@echo "Long files and functions, to look at:"
	@$(BIN)/python scripts/smells.py

hooks: $(DEV) ## run the gates of make check, but for the tests, at every commit and push
	$(BIN)/pre-commit install

torture: $(DEV) ## kill runs hundreds of times, fill disks, and compare; takes long
	$(BIN)/python -m tests.reliability.torture $(ARGS)
	$(BIN)/python -m tests.reliability.elastic
	$(BIN)/python -m tests.reliability.elastic_launch
	$(BIN)/python -m tests.reliability.steady
	$(BIN)/python -W ignore -m tests.reliability.sharded_kills
	$(BIN)/python -W ignore -m tests.reliability.loop_kills
	COUNTERPOINT_TORTURE=1 $(BIN)/python -m pytest $(SHARED)

bench: $(DEV) ## every script of benchmarks/, then the tables of the docs
	@for script in benchmarks/*.py; do \
		echo "== $$script"; $(BIN)/python "$$script" || exit 1; done
	@for script in benchmarks/*.py; do $(BIN)/python "$$script" --docs || exit 1; done

docs: $(DEV) ## write the pages of docs/ that the code says
	$(BIN)/python scripts/generate_docs.py

site: $(DEV) ## the documentation as a site, in build/site; every link and anchor must hold
	$(BIN)/sphinx-build --builder html --conf-dir docs --fresh-env --write-all --fail-on-warning \
		--keep-going --nitpicky --quiet . build/site
	@echo "build/site/index.html"

golden: $(DEV) ## record the golden losses anew; say why in the commit
	$(BIN)/python -m tests.house.golden

floors: $(FLOORS) ## some tests with the oldest versions allowed, in their own environment
	PYTHONPATH=src $(FLOOR_VENV)/bin/python -m pytest $(FLOOR_TESTS) $(ARGS)

constraints: $(DEV) ## pin the versions that are installed now
	@sed -n '/^#/p' $(CONSTRAINTS) > $(CONSTRAINTS).new
	@$(BIN)/python -m pip freeze --exclude-editable | grep -v '^#' | \
		sed -E 's/\+[a-z0-9.]+$$//' | sort -f >> $(CONSTRAINTS).new
	@mv $(CONSTRAINTS).new $(CONSTRAINTS)

clean: ## remove the virtual environments and caches
	rm -rf $(VENV) $(FLOOR_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "There is no $(PYTHON); name a Python from 3.11: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$($(PYTHON) --version), but Counterpoint needs Python 3.11 or newer:" \
			"make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) install --quiet -c $(CONSTRAINTS) -e '.[report]'
	@touch $@

$(DEV): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) install --quiet --upgrade 'pip>=25.1'  # the first that knows --group
	$(PIP) install --quiet -c $(CONSTRAINTS) --group dev --group docs --group trl \
		-e '.[peft,torchao,report,evaluate]'
	@touch $@ $(RUNTIME)

$(FLOORS): pyproject.toml scripts/floors.py
	$(PYTHON) -m venv $(FLOOR_VENV)
	$(FLOOR_VENV)/bin/python -m pip install --quiet pytest hypothesis beartype sacrebleu \
		$$($(PYTHON) scripts/floors.py | $(if $(FLOOR_TORCH),sed 's/^torch==.*/$(FLOOR_TORCH)/',cat))
	@touch $@
