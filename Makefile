# make demo    set up and run the demonstration (a few minutes)
# make test    set up and run the tests
# make test-browser    the same for the pages, in a Chromium; as root, it installs one where there is none
# make notebooks    run the notebooks with small budgets and check their outputs (a few minutes)
# make docs    the documentation as a site, in site/; needs npm, which fetches KaTeX for the formulas
# make fuzz    5,000 malformed inputs (at most 10 minutes); of which make test runs a share
# make storm   200 kills and 120 full disks (about 20 minutes; as root, for a small file system in memory)
# make lint    set up and run the linters and the type checker
# make format  let ruff rewrite what it can
# make dist    build the sdist and the wheel, and check their contents
# make release the same, if this commit may be released; prints the commands that publish it
# make setup   install what all of these need, release excepted, at once: quicker than one after the other
# make clean   remove what make set up (never runs/)
#
# make PYTHON=/path/to/python3.12 ...   chooses the interpreter; otherwise the first of these that is 3.11 to 3.13.

CANDIDATES = $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python)
VENV = .venv
BIN = $(VENV)/bin
FORMS = $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
KATEX = 0.19.1
# One thread per test process: the suite runs in two.
WORKERS ?= 2

.PHONY: demo test test-browser notebooks docs fuzz storm lint format dist release setup clean
.DEFAULT_GOAL := test
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/genmodels demo $(ARGS)

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-browser: $(VENV)/.installed-browser
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium && exit 0; \
	fi; \
	echo "test-browser needs chromium, chromium-browser or google-chrome: install one, such as by apt-get install chromium" >&2; \
	exit 1
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser $(ARGS)

notebooks: $(VENV)/.installed-notebooks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/notebooks $(ARGS)

docs: build/katex/.installed-$(KATEX) $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

fuzz: $(VENV)/.installed-dev
	$(BIN)/python tests/fuzz/run.py $(ARGS)

storm: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/storm.py $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms $(FORMS)
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.citation-file-format CITATION.cff

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dist: $(VENV)/.installed-release
	$(BIN)/python tools/release.py

release: $(VENV)/.installed-release
	$(BIN)/python tools/release.py --final

setup: $(VENV)/.created
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,browser,notebooks,docs]'
	@cd $(VENV) && touch .installed .installed-dev .installed-browser .installed-notebooks .installed-docs

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
	find genmodels recipes tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is written last, so that an interrupted installation is taken up again.
$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-browser: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,browser]'
	@touch $(VENV)/.installed $(VENV)/.installed-dev $@

$(VENV)/.installed-release: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[release]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-notebooks: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,notebooks]'
	@touch $(VENV)/.installed $(VENV)/.installed-dev $@

$(VENV)/.installed-docs: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $(VENV)/.installed $@

build/katex/.installed-$(KATEX):
	@command -v npm >/dev/null || { echo "docs needs npm, which fetches KaTeX: install Node.js" >&2; exit 1; }
	npm install --silent --no-save --no-audit --no-fund --prefix build/katex katex@$(KATEX)
	@touch $@

$(VENV)/.created:
	@for python in $(CANDIDATES); do \
	    if $$python -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then \
	        echo "Setting up $(VENV) with $$($$python --version) (about 2 minutes)"; \
	        $$python -m venv $(VENV) && touch $@ && exit 0; \
	        exit 1; \
	    fi; \
	done; \
	echo "genmodels needs Python 3.11, 3.12 or 3.13 with venv; none of these is one: $(CANDIDATES)." >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
	exit 1
