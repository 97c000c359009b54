# Every target sets itself up on a machine with nothing but Python 3.11 or newer:
#   make demo | test | test-fast | test-shapes | browser | bench | check | findings | findings-quick | clean

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check
TORCH  := $(shell grep '^torch==' constraints.txt)
MODEL  := smollm2-135m
CHROMIUM := chromium chromium-browser google-chrome google-chrome-stable
# one thread for each of two processes; files stay whole, since they share what they build
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
# the rooms whose signatures have shapes; tests/conftest.py leaves out all but two families
SHAPES := -m 'not slow' --jaxtyping-packages=tempo,tempo_analysis,beartype.beartype \
	tests/test_shapes.py tests/causal tests/engine tests/parallel tests/policy tests/report \
	tests/stats tests/studies tests/trace --ignore tests/parallel/test_page_in_chromium.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help install model browser demo test test-fast test-shapes bench check findings findings-quick clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

install: $(STAMP)

# torch goes first, by itself, so that the resolver keeps the build chosen here.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and f"expected Python 3.11 or newer, got {v[0]}.{v[1]}: set PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing $(TORCH)"
	@$(PIP) install -qq $(TORCH)
	@echo "installing the rest of constraints.txt"
	@$(PIP) install -qq -c constraints.txt -e '.[test]'
	@touch $@

model: install
	@$(BIN)/tempo models pull $(MODEL)

demo: model ## compare four arms on twelve prompts; the report lands in runs/demo
	@$(BIN)/tempo compare --suite demo --arms isolated,visible,unique,greedy --out runs/demo --force

check: install ## format, lint, types, import floors
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/basedpyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports --no-logo

# Where no Chromium can be had, the tests of the page are skipped, each by its name.
browser: install ## find Chromium for the tests of the page, or install it
	@for name in $$TEMPO_CHROMIUM $(CHROMIUM); do command -v $$name >/dev/null && exit 0; done; \
	if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
		echo "installing Chromium"; apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium >/dev/null && exit 0; fi; \
	$(BIN)/python -m playwright install chromium || \
		echo "no Chromium: the tests of the page are skipped"

test: model browser check ## check, then every test, fast and slow, then test-shapes
	@$(PYTEST)
	@$(PYTEST) $(SHAPES)

test-fast: browser check ## check, then the tests that need no real model
	@$(PYTEST) -m 'not slow'

test-shapes: install ## some tests again, with every shape and type in a signature checked
	@$(PYTEST) $(SHAPES)

bench: model ## speed against Hugging Face generate
	@$(BIN)/python -m benchmarks.speed

findings: model ## ask every experiment again, in order, and write FINDINGS.md
	@rm -rf runs/findings
	@for run in experiments/e*/run.py; do echo "$$run"; $(BIN)/python "$$run" || exit 1; done
	@$(BIN)/python -m experiments.findings

findings-quick: model ## the same with eight prompts each; the page lands in runs/quick
	@rm -rf runs/quick runs/findings/*-quick
	@for run in experiments/e*/run.py; do echo "$$run"; \
		name=$$(basename $$(dirname "$$run")); \
		$(BIN)/python "$$run" --quick --out "runs/quick/$$name" || exit 1; done
	@$(BIN)/python -m experiments.findings --results runs/quick --page runs/quick/FINDINGS.md

clean: ## remove the environment, builds and caches; runs/ stays
	@rm -rf $(VENV) build dist .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
