# Two commands matter to a newcomer: `make demo` and `make test`.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Tests that run at once, a file each. Many of them are small swarms that mostly wait.
JOBS ?= 2

.PHONY: demo test lint format proto bench adversary soak screenshots clean

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV): takes some minutes, once."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/barnraise demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m protocol.wire.regenerate --check

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(VENV)/.installed
	$(BIN)/python -m protocol.wire.regenerate

bench: $(VENV)/.installed
	$(BIN)/python -m bench

# Every known way of cheating against real runs, about half an hour; a part of it is in `make test`.
adversary: $(VENV)/.installed
	$(BIN)/python tests/adversary/table.py

# Half an hour of a whole run under random faults; three minutes of it are in `make test`.
SEED ?= 1
MINUTES ?= 30
WORKERS ?= 12

soak: $(VENV)/.installed
	$(BIN)/python tests/chaos/chaos_soak.py --seed $(SEED) --minutes $(MINUTES) --workers $(WORKERS)

# The README's pictures of the leaderboard, by the Chromium that the tests use.
screenshots: $(VENV)/.installed
	$(BIN)/python tests/web/screenshots.py docs/screenshots

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
