# `make demo`, `make demo-loops` and `make test` do all their own set-up, in .venv, and start at once when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= isoloop-out
TESTERS ?= 3
# Where it is set, each of the hundred processes that the tests start compiles the same modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-loops test lint format hooks clean

demo: $(VENV)/.installed
	$(BIN)/isoloop plan demo --out $(OUT)
	$(BIN)/isoloop run demo --out $(OUT) --address local
	$(BIN)/isoloop predict demo --out $(OUT) --mean-recurrence 6 --flops 1e12
	$(BIN)/isoloop answer demo --out $(OUT)
	$(BIN)/isoloop generate demo --out $(OUT) --prompt "def " --temperature .6 --seed 1
	@echo "The page of the sweep: $(OUT)/sweeps/demo/report.html"

demo-loops: $(VENV)/.installed
	$(BIN)/isoloop plan demo-loops --out $(OUT)
	$(BIN)/isoloop run demo-loops --out $(OUT) --address local
	@echo "The page of the sweep: $(OUT)/sweeps/demo-loops/report.html"

test: $(VENV)/.installed-dev lint
	$(BIN)/pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(VENV)/.installed-dev
	$(BIN)/pre-commit install

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "isoloop needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Say: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
