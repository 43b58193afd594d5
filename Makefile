# Each target sets up what it needs by itself. `make` alone lists them.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/installed
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"
SNAKEMAKE := $(RUN) python -m workflow.progress

.DEFAULT_GOAL := help
.PHONY: help run book html pdf links lab sweep test accept bench lint sync clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 8

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not here; install Python 3.11, or say make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

run: $(STAMP) ## execute every notebook at the smoke tier and render the book from it
	$(SNAKEMAKE) --config tier=smoke
	@echo "the book: build/smoke/html/index.html"

book: $(STAMP) ## the book tier: replay or make the recorded runs, store the notebooks, render
	$(SNAKEMAKE) --config tier=book
	@echo "the book: build/book/html/index.html"

html: $(STAMP) ## render the stored outputs
	$(RUN) python -m workflow.book book

pdf: html ## the whole book in one file, build/book/book.pdf; needs Chromium with its chromedriver
	$(RUN) python -m workflow.pdf book

links: $(STAMP) ## ask for every external link of the book; needs a network
	$(RUN) python -m workflow.book book links

lab: $(STAMP) ## open the notebooks in JupyterLab; to save one saves its .py and its .ipynb
	$(RUN) JUPYTER_CONFIG_PATH=workflow python -m jupyterlab

SWEEP ?= sweeps/beta.yml
sweep: $(STAMP) ## run a grid of parameters: make sweep SWEEP=sweeps/beta.yml, on a cluster PROFILE=profiles/slurm
	$(RUN) python -m workflow.sweep $(SWEEP) $(if $(PROFILE),--workflow-profile $(PROFILE))

test: run ## run all the tests, on the smoke run's notebooks and pages too
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile

accept: $(STAMP) ## pin the numbers that have moved; look at the change before you commit it
	$(RUN) python -m tests.pins

bench: $(STAMP) ## measure; writes benchmarks/latest.json and book/hardware.md
	$(RUN) python -m benchmarks
	$(RUN) python -m workflow.hardware

lint: $(STAMP) ## format and lint
	$(RUN) ruff format . && $(RUN) ruff check --fix . && $(RUN) python -m workflow.pairs

sync: $(STAMP) ## make the files of each pair agree: the cells of the younger one, outputs kept
	$(RUN) jupytext --quiet --sync notebooks/*.py
	$(RUN) python -m workflow.pairs

clean: ## remove what the other targets made, recorded runs apart
	rm -rf build .venv .snakemake
