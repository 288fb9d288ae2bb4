# Each target makes .venv on its first run and starts at once on the next.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-browser lint bench clean

demo: $(STAMP)
	$(BIN)/gpmoe demo

# One process a core, and one thread in each: pools of threads that share cores wait for each other.
test: lint
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# Opens a report in headless Chromium, which `make test` does without.
test-browser: $(STAMP)
	$(BIN)/python tests/browser/open_report.py

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf .venv

# torch, the largest by far, comes first and alone: pip then need not weigh other versions of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gpmoe needs Python 3.11 or newer; say which with PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev,plot,examples]'
	touch $@
