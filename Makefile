# Every target makes its own virtual environment in .venv when there is none; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo

.PHONY: help demo test test-long check format bench study clean

help:
	@echo "make demo       install, train on real digits, sample every class, score (about 4 minutes on 2 cores)"
	@echo "make test       the whole test suite, but for what takes long"
	@echo "make test-long  the reliability tests with many more kills, damages and steps"
	@echo "make check      formatting, lint, types, import rules"
	@echo "make format     put the code into shape"
	@echo "make bench      measure"
	@echo "make study      make the missing runs of tests/study (hours; STUDY=--dry-run lists them)"
	@echo "make clean      remove the virtual environment and build leftovers"

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'dis needs Python 3.11 or newer')"
	$(PYTHON) -m venv $(VENV)

# The stamps are older than pyproject.toml when its dependencies may have changed, and than the kernel's source when it
# must be compiled again.
KERNEL := $(wildcard dis_cli/scan/engines/cpu/csrc/*)

$(VENV)/.installed: pyproject.toml $(KERNEL) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(KERNEL) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/dis train --preset dis-xs-digits --out $(RUN) train.preview_every=180
	$(BIN)/dis sample --ckpt $(RUN) --class all -n 100 --out $(RUN)/samples/demo
	$(BIN)/dis eval-fid --ckpt $(RUN)
	$(BIN)/dis report $(RUN)
	@echo
	@echo "Open $(RUN)/report.html in a browser. The grid is $(RUN)/samples/demo/grid.png. Go on with:"
	@printf '  %-55s %s\n' \
		"$(BIN)/dis sample --ckpt $(RUN) --class 3 -n 64" "more images of one class" \
		"$(BIN)/dis train --out runs/longer train.steps=6000" "a longer run of its own" \
		"$(BIN)/dis train --preset dis-m-cifar --data DIR" "another data set" \
		"$(BIN)/dis flops --size xl --patch 2" "what a model costs"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2

test-long: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -m long

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev
	$(BIN)/python tests/bench/run.py $(BENCH)

study: $(VENV)/.installed
	$(BIN)/python tests/study/run.py $(STUDY)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
