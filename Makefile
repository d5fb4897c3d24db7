# Everything runs in .venv, which is made on first use and again whenever pyproject.toml or constraints.txt changes.
#   make demo PYTHON=python3.12                                    another Python (3.11 or newer)
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu     a CPU build of torch on Linux

TORCH_INDEX ?=
BIN := .venv/bin
INSTALLED := .venv/installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python; do \
	$$p $(NEW_ENOUGH) && { echo $$p; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all reference overfit lint types bench docs notebooks wheel clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-10s %s\n", $$1, $$2}' Makefile

demo: $(INSTALLED)  ## make a clip of look-alikes and tell them apart by three sentences (pictures in demo/)
	$(BIN)/dshmp demo --out demo

test: $(INSTALLED)  ## run the tests that take seconds, on all cores
	$(BIN)/python -m pytest -n auto --dist loadfile

test-all: $(INSTALLED)  ## run all tests, slow ones too
	$(BIN)/python -m pytest -m "slow or not slow"

reference: $(INSTALLED)  ## compare with the release's recorded arrays, or DSHMP_REFERENCE=FOLDER with others of the kinds
	$(BIN)/python -m pytest tests/test_golden.py

overfit: $(INSTALLED)  ## learn four clips by heart from random weights, J&F above 95 (ten minutes on two cores)
	$(BIN)/python -m pytest -m slow tests/training/test_overfit.py

lint: $(INSTALLED)  ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED)  ## check types
	$(BIN)/mypy

bench: $(INSTALLED)  ## time the segmentation of 10 s of video, J and F, and the opening of a large data set
	$(BIN)/python benchmarks/segment.py
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/open_mevis.py

docs: $(INSTALLED)  ## build the documentation into site/, warnings being errors
	$(BIN)/python docs/build.py

notebooks: $(INSTALLED)  ## run the notebooks anew and keep their outputs
	$(BIN)/python docs/build.py --notebooks

wheel: $(INSTALLED)  ## build the package that others install, into dist/
	$(PIP) wheel --no-deps --wheel-dir dist .

clean:  ## remove the environment, caches and the demo's pictures (runs/ and synthetic/ stay)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist demo site
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) $(NEW_ENOUGH) || { \
		echo "Python 3.11 or newer is needed; install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv || { \
		echo "the virtual environment could not be made; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
ifneq ($(TORCH_INDEX),)
	$(PIP) install --no-deps -c constraints.txt --index-url $(TORCH_INDEX) torch
endif
	$(PIP) install -c constraints.txt -e '.[dev,docs,export,plots,ray,web]'
	@touch $@
