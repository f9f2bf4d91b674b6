# make help lists the targets. Paths are relative, so the folder may stand anywhere, also where names have spaces.
VENV := .venv
# The first of these that is Python 3.11 to 3.13 and can make virtual environments; `make env PYTHON=...` overrides it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1 \
	&& echo $$p && break; done)
RUN := $(VENV)/bin/python
# Chapters to execute or to turn into text: `make execute CHAPTERS=07`; all of them without it.
CHAPTERS ?=

.DEFAULT_GOAL := help
.PHONY: help env book test lint execute bench text untext colab-check clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 13

env: ## make or renew the virtual environment in .venv (reused, and offline, while nothing changes)
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 with venv found: install one (on Debian and Ubuntu also \
	python3-venv), or name it: make env PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) tools/environment.py $(VENV)

book: env ## build the book as HTML in _build/html
	@$(VENV)/bin/jupyter-book build . -n -W --keep-going -q
	@echo "open _build/html/index.html"

test: env ## lint, types, unit tests, every chapter executed and compared, strict build
	@$(RUN) tools/gate.py

lint: env ## the quick part of `make test`: ruff, ruff format, mypy
	@$(RUN) tools/gate.py lint format types

execute: env ## run chapters from a fresh kernel, store outputs and labels
	@$(RUN) tools/notebooks.py execute $(CHAPTERS)

bench: env ## run the benchmarks, for more than an hour, and print their tables
	@mkdir -p _build && : > _build/benchmarks.jsonl
	@for file in benchmarks/*.py; do echo "$$file" && $(RUN) "$$file" >> _build/benchmarks.jsonl || exit 1; done
	@$(RUN) -m benchmarks.shared.tabulate _build/benchmarks.jsonl

text: env ## write the chapters as text, to edit them, in book/text
	@$(RUN) tools/notebooks.py text $(CHAPTERS)

untext: env ## put the edited text back into the chapters
	@$(RUN) tools/notebooks.py untext $(CHAPTERS)

colab-check: env ## run chapters in an environment that holds what Colab holds (downloads several GB; not part of CI)
	@$(RUN) tools/colab.py $(CHAPTERS)

clean: ## remove what was built, the virtual environment included
	rm -rf _build $(VENV) .venv-colab book/text .mypy_cache .ruff_cache .pytest_cache
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
