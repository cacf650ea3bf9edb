# prodsim: `make run` does the main job, `make test` proves it. `make` alone lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
CHAPTERS ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.prodsim-installed

# A kernel starts in nbs/, so a relative path to the data would point somewhere else there.
ifneq ($(strip $(PRODSIM_DATA)),)
override PRODSIM_DATA := $(abspath $(PRODSIM_DATA))
export PRODSIM_DATA
endif

.PHONY: help install run test test-full lab book bench results notebooks export links format lint hooks clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo "  variables: PYTHON=$(PYTHON)  VENV=$(VENV)  WORKERS=$(WORKERS)  PRODSIM_DATA=$(or $(PRODSIM_DATA),(unset: the user's cache))"

install: $(STAMP)  ## create .venv and install prodsim with pinned versions (the other targets do it for you)

$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || { echo "prodsim: no '$(PYTHON)' on the PATH; name a Python 3.11 or newer: make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "prodsim: needs Python 3.11 or newer, '$(PYTHON)' is $$("$(PYTHON)" -c 'import platform; print(platform.python_version())'); name another: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -m venv "$(VENV)" || { rm -rf "$(VENV)"; echo "prodsim: '$(PYTHON) -m venv' failed (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }

$(STAMP): settings.ini setup.py constraints.txt | $(BIN)/python
	@echo "installing prodsim into $(VENV) (some minutes the first time)"
	@"$(BIN)/python" -m pip install --disable-pip-version-check --no-input --no-compile -c constraints.txt -e ".[dev,offline]" | sed -u "/^Requirement already satisfied/d"
	@"$(BIN)/python" -c "import lightgbm" || { echo "prodsim: lightgbm does not load, see above (libgomp.so.1 missing? on Debian and Ubuntu: apt install libgomp1)" >&2; exit 1; }
	@touch "$@"

run: $(STAMP)  ## fine-tune and evaluate on the embedded shop: executed chapter, page, model, table
	@"$(BIN)/python" tools/run_quickstart.py

test: $(STAMP)  ## the whole suite at smoke parameters; real data if PRODSIM_DATA names it
	@"$(BIN)/python" -m pytest -n $(WORKERS) --dist loadscope --durations=10 $(PYTEST_ARGS)

test-full: $(STAMP)  ## also the slow tests, the chapters at the reader's defaults, and every mutation
	@"$(BIN)/python" -m pytest -n $(WORKERS) --dist loadscope --durations=10 --full $(PYTEST_ARGS)

lab: $(STAMP)  ## open the chapters in JupyterLab
	@"$(BIN)/jupyter" lab --notebook-dir=nbs

book: $(STAMP)  ## render the book to _docs/ with Quarto
	@if command -v quarto >/dev/null; then PATH="$(abspath $(BIN)):$$PATH" quarto render; \
	else echo "prodsim: the book needs Quarto (https://quarto.org/docs/get-started/); the same chapters open with 'make lab'"; fi

bench: $(STAMP)  ## scoring, embedding and training beside the usual ways, on this machine
	@"$(BIN)/prodsim" bench

results: $(STAMP)  ## work through the queue of full benchmark runs, go on where it stopped; fill the README
	@"$(BIN)/prodsim" results
	@"$(BIN)/python" tools/readme.py

notebooks: $(STAMP)  ## execute chapters in place and clean them (CHAPTERS="10_losses 20_data" for some)
	@"$(BIN)/python" tools/execute.py $(CHAPTERS)

export: $(STAMP)  ## write prodsim/ from nbs/
	@"$(BIN)/nbdev_export"

links: $(STAMP)  ## rewrite the GitHub owner in badges and links from settings.ini
	@"$(BIN)/python" tools/links.py

format: $(STAMP)  ## mend and format chapters, tests and tools with ruff, and export
	@"$(BIN)/ruff" check --fix --exit-zero --quiet; "$(BIN)/ruff" format; "$(BIN)/nbdev_export"; "$(BIN)/ruff" check

lint: $(STAMP)  ## ruff on package, chapters, tests and tools
	@"$(BIN)/ruff" check && "$(BIN)/ruff" format --check

hooks:  ## check notebooks, exports and lint before every git commit
	@git config core.hooksPath .githooks && echo "git hooks on (.githooks/pre-commit)"

clean:  ## remove what the other targets made, but not .venv
	@rm -rf _docs _run .quarto .pytest_cache .ruff_cache build *.egg-info; find nbs tests prodsim tools -name __pycache__ -o -name .ipynb_checkpoints | xargs -r rm -rf
