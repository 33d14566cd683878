# make demo   a trained model, its AP, pictures and curves, in minutes on two CPU cores
# make test   everything that CI checks
# Both build .venv by themselves, with the exact versions of constraints.txt.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test lint types imports pytest

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := runs/demo

help:
	@sed -n 's/^# //p' Makefile

$(INSTALLED): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
		for python in python3.11 python3.12 python3.13 python3; do \
			if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
		done; \
		if [ -z "$${found:-}" ]; then echo "No Python of at least 3.11 found; install one." >&2; exit 1; fi; \
		echo "Building $(VENV) with $$($$found --version)"; \
		$$found -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	@touch $@

# The demo: train on shapes; the run prints AP on images that it has not seen, and leaves them with boxes, and curves.
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

test: lint types imports pytest
