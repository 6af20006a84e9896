# `make book` builds the book, `make check` is for every day, `make test` runs everything that must pass, and
# `make help` lists the rest. Each does all set-up.

PYTHON ?= python3
VENV := .venv
export PYTHONPATH := $(CURDIR)/code
# Nothing is written outside this folder and the user's cache.
export JUPYTER_CONFIG_DIR := $(CURDIR)/_build/.home/jupyter/config
export JUPYTER_DATA_DIR := $(CURDIR)/_build/.home/jupyter/data
export JUPYTER_RUNTIME_DIR := $(CURDIR)/_build/.home/jupyter/runtime
export IPYTHONDIR := $(CURDIR)/_build/.home/ipython
export MPLCONFIGDIR := $(CURDIR)/_build/.home/matplotlib
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Many containers set it: each of the tests' processes would compile what it imports anew.
unexport PYTHONDONTWRITEBYTECODE

# `make book LOCKED=1` installs what was proved when this commit was made, instead of the newest allowed versions.
LOCKED ?=
locked := $(filter-out 0 no,$(LOCKED))
ready := $(VENV)/installed$(if $(locked),-locked)

say = @echo; echo "== $(1)"
run = $(VENV)/bin/python -m
resolve = $(VENV)/bin/uv pip compile --quiet --no-header --no-annotate --no-config --no-emit-index-url \
  --no-emit-find-links --no-emit-package llm-learn

.PHONY: book check test help epub lab chapter experiment sync new-chapter words modules links lock lowest clean
.NOTPARALLEL:

book: $(ready)  ## execute what has changed, and build the site
	$(call say,The book)
	@$(run) book build

check: $(ready)  ## the style, the types, and the tests that need no build: at most 3 minutes on two cores
	$(call say,Style)
	@$(run) ruff check code tests experiments
	@$(run) ruff format --check code tests experiments
	@env -u PYTHONPATH $(run) pyrefly check
	$(call say,Fast tests)
	@$(run) pytest -n 2 -m "not slow"

test: $(ready)  ## everything that must pass
	$(call say,Style)
	@$(run) ruff check code tests experiments
	@$(run) ruff format --check code tests experiments
	@env -u PYTHONPATH $(run) pyrefly check
	$(call say,Unit and contract tests)
	@$(run) pytest -n 2
	$(call say,The book: a clean build)
	@$(run) book build --clean
	$(call say,The proof: every notebook once more)
	@$(run) book prove
	$(call say,The site in a browser)
	@$(run) pytest tests/site -n 2 --dist loadfile

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

epub: book  ## the whole book as one file, for a reader without a network
	@$(run) book epub

chapter: $(ready)  ## execute and build one page: make chapter NAME=attention
	@test -n "$(NAME)" || { echo "Which chapter? For example: make chapter NAME=attention"; exit 2; }
	@$(run) book build --chapter "$(NAME)"

experiment: $(ready)  ## run a recorded experiment anew: make experiment NAME=gpt
	@test -f "experiments/$(NAME).py" || { echo "Which experiment? One of:" $(basename $(notdir $(wildcard experiments/*.py))); exit 2; }
	@OMP_NUM_THREADS=1 $(VENV)/bin/python "experiments/$(NAME).py"

lab: $(ready)  ## the chapters as notebooks in JupyterLab
	@$(run) book lab

sync: $(ready)  ## write the package's text into the packaged cells
	@$(run) book sync

new-chapter: $(ready)  ## start a chapter from the template: make new-chapter NAME=part/slug
	@test -n "$(NAME)" || { echo "Which name? For example: make new-chapter NAME=first-model/attention"; exit 2; }
	@$(run) book new-chapter "$(NAME)"

words: $(ready)  ## the words of a page that its author should replace: make words NAME=attention
	@test -n "$(NAME)" || { echo "Which page? For example: make words NAME=attention"; exit 2; }
	@$(run) book words "$(NAME)"

modules: $(ready)  ## the modules of the package and of the builder, each with what it is for
	@$(run) book modules

links: $(ready)  ## ask every external address whether it still answers; needs `make book` first
	@$(run) book links

# uv, because it resolves for every Python and every system at once. Versions that still fit stay as they are.
lock:  ## write requirements.lock anew, after a change of requirements; UPGRADE=1 takes the newest of all
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@$(run) pip install --quiet "uv>=0.8,<1"
	@$(resolve) --universal --python-version 3.11 $(if $(UPGRADE),--upgrade) --output-file requirements.lock requirements.txt

# Then `make test` tells whether the lower bounds still hold. What is not named in requirements.txt stays new.
lowest:  ## install every requirement at the lowest version that it allows, instead of the newest
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@$(run) pip install --quiet "uv>=0.8,<1"
	@mkdir -p _build
	@$(resolve) --python $(VENV)/bin/python --resolution lowest-direct --output-file _build/lowest.txt requirements.txt
	@rm -f $(VENV)/installed $(VENV)/installed-locked
	@$(run) pip install --quiet --requirement requirements.txt --constraint _build/lowest.txt
	@touch $(VENV)/installed

clean:  ## forget everything that was built; .venv stays
	rm -rf _build

# Not compiled: of 25,000 modules few are ever imported, and Python keeps what it compiles.
$(ready): requirements.txt pyproject.toml $(if $(locked),requirements.lock)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "LLM Learn needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(call say,Python environment in $(VENV))
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@$(run) pip install --quiet --no-compile --requirement requirements.txt $(if $(locked),--constraint requirements.lock)
	@rm -f $(VENV)/installed $(VENV)/installed-locked
	@touch $@
