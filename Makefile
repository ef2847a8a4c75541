# SPDX-License-Identifier: GPL-3.0-or-later
# make demo    refine a simulated protein and compare the map with the known truth
# make test    run the tests: of the engine, and of the plugin inside Scipion
# make test-plugin PYTHONS="python3.8 python3.10 python3.12"    those of the plugin on other Pythons
# make reliability   bad inputs and injected faults, also those that take long, and the readers under a fuzzer for
#              FUZZ_SECONDS (60) each, as far as it can be installed; counts go to $(RELIABILITY)/ and docs/reliability.md
# make docs    the pages of docs/ as a site in $(SITE)/, with warnings as errors
# make check   lint and types
# make clean   remove everything that the targets above made
#
# Every target sets up what it needs in $(VENV), a virtual environment of this checkout; a second run finds it ready.

PYTHON ?= python3
VENV ?= .venv
SCIPION ?= .scipion
PYTHONS ?= python3
DEMO ?= demo
FUZZ_SECONDS ?= 60
RELIABILITY ?= reliability
SITE ?= site
THREADS ?= $(shell nproc 2>/dev/null || echo 2)
SPARSECV := $(VENV)/bin/sparsecv

.PHONY: help demo test test-engine test-plugin reliability docs check clean environment environment-dev environment-docs

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

environment:
	@$(PYTHON) -m sparsecv.environment $(VENV) --source . --extras engine

environment-dev:
	@$(PYTHON) -m sparsecv.environment $(VENV) --source . --extras engine,dev

environment-docs:
	@$(PYTHON) -m sparsecv.environment $(VENV) --source . --extras docs

demo: environment
	@rm -rf $(DEMO)
	$(SPARSECV) simulate --output $(DEMO)/data --seed 1
	$(SPARSECV) refine --particles $(DEMO)/data/particles.star --reference $(DEMO)/data/reference.mrc \
	    --output $(DEMO)/run --threads $(THREADS) --seed 1
	$(SPARSECV) fsc $(DEMO)/run/run_class001.mrc $(DEMO)/data/truth.mrc --mask $(DEMO)/data/mask_protein.mrc \
	    --output $(DEMO)/truth
	@echo "Open in a browser: $(DEMO)/run/report.html"

test: test-engine test-plugin

test-engine: environment-dev
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGUMENTS)

# each Python has an environment of its own; the plugin starts the engine of $(VENV)
test-plugin: environment-dev
	@for python in $(PYTHONS); do \
	    folder=$(SCIPION)/$$(basename $$python); \
	    $(VENV)/bin/python -m sparsecv.environment $$folder --scipion sparsecv/tests/requirements.txt --source . \
	        --python "$$(test $$python = python3 || echo $$python)" \
	        || { test -z "$$CI" || exit 1; echo "The tests of the plugin are skipped."; continue; }; \
	    SPARSECV_HOME=$(abspath $(VENV)) $$folder/bin/python -m pytest -c sparsecv/tests/pytest.ini sparsecv/tests \
	        -n 2 --dist loadfile $(PLUGIN_ARGUMENTS) || exit 1; \
	done

# the fuzzer is no part of the environment: it has wheels for some Pythons only
reliability: environment-dev
	@rm -rf $(RELIABILITY) && mkdir -p $(RELIABILITY)
	SPARSECV_RELIABILITY=$(abspath $(RELIABILITY)) $(VENV)/bin/python -m pytest -n 2 --dist load --timeout 1800 \
	    tests/faults $(PYTEST_ARGUMENTS)
	$(VENV)/bin/python -m pytest -m reliability tests $(PYTEST_ARGUMENTS)
	@$(VENV)/bin/python -m pip install -q "atheris>=2.3" 2>/dev/null || echo "atheris cannot be installed."
	$(VENV)/bin/python tests/badinputs/fuzz.py --seconds $(FUZZ_SECONDS) --report $(RELIABILITY)/fuzz.json
	$(VENV)/bin/python tests/badinputs/report.py --output $(RELIABILITY)/badinputs.json --fuzz $(RELIABILITY)/fuzz.json
	$(VENV)/bin/python tools/reliability.py $(RELIABILITY)

# from scratch each time: a page that is not read again hides its warnings
docs: environment-docs
	@rm -rf $(SITE)
	$(VENV)/bin/python -m sphinx -q -b html -W --keep-going -d $(SITE)/.doctrees docs $(SITE)
	@rm -rf $(SITE)/.doctrees && echo "$(SITE)/index.html"

check: environment-dev
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m mypy

clean:
	rm -rf $(VENV) $(SCIPION) $(DEMO) $(RELIABILITY) $(SITE) build dist *.egg-info .pytest_cache .mypy_cache .hypothesis
	find . \( -name __pycache__ -o -name .ruff_cache \) -type d -prune -exec rm -rf {} +
