# make demo       train a model and get its AP, pictures and curves, in minutes on two CPU cores
# make test       run everything that CI checks
# make test-fast  run only the tests that take less than ten seconds each
# make notebooks  run the notebooks in build/notebooks, in about half an hour; the site then has their figures
# make docs       build the documentation site; then open build/site/index.html
# Each builds .venv first if necessary, with the exact versions in constraints.txt.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo docs notebooks notebooks-reduced test test-fast lint types imports pytest

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := runs/demo

help:
	@sed -n '/^# /!q; s/^# //p' Makefile

$(INSTALLED): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
		for python in python3.11 python3.12 python3.13 python3; do \
			if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
		done; \
		if [ -z "$${found:-}" ]; then echo "No Python 3.11 or newer found; install one." >&2; exit 1; fi; \
		echo "Building $(VENV) with $$($$found --version)"; \
		$$found -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,docs,notebooks,export,openvino,tune,video,serve,remote,ray,metrics]' --config-settings editable_mode=compat --constraint constraints.txt
	@touch $@

# Trains on generated shapes, prints AP on held-out images, and saves their pictures with boxes and the training curves.
demo: $(INSTALLED)
	rm -rf $(DEMO)
	$(BIN)/detr train configs/shapes.yaml --output_dir $(DEMO)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED)
	$(BIN)/mypy

imports: $(INSTALLED)
	$(BIN)/lint-imports

pytest: $(INSTALLED)
	$(BIN)/pytest --numprocesses 2

test-fast: $(INSTALLED)
	$(BIN)/pytest --numprocesses 2 -m "not slow"

# Runs copies, so that the notebooks themselves stay without outputs.
notebooks: $(INSTALLED)
	rm -rf build/notebooks
	mkdir -p build
	cp -r notebooks build/notebooks
	$(BIN)/pytest --nbmake --nbmake-timeout 3600 --timeout 7200 --overwrite --durations 0 build/notebooks

# The same with less data, in minutes: whether they run, with results that mean nothing.
notebooks-reduced: $(INSTALLED)
	rm -rf build/notebooks_reduced
	mkdir -p build
	cp -r notebooks build/notebooks_reduced
	NOTEBOOKS_REDUCED=1 OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --nbmake --durations 0 build/notebooks_reduced

# Fails on a broken link.
docs: $(INSTALLED)
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: lint types imports pytest notebooks-reduced
