# `make train` and `make test` work on a fresh machine: both create the virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The labeling page is tested in a browser. TDMR1_CHROMIUM is the path of Chromium or Chrome.
TDMR1_CHROMIUM ?= /usr/bin/chromium
export TDMR1_CHROMIUM

# Whole files, in order: the long ones come first, and a fixture of a file is made once.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup chromium programs train test test-fast test-long stress coverage lint docs tiny-world tiny-words tiny-pairs clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

train: setup
	$(BIN)/tdmr1 train

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-fast: setup lint
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL) -m "unit and not long"

chromium:
	@if [ -x "$(TDMR1_CHROMIUM)" ]; then exit 0; \
	elif [ "$(TDMR1_CHROMIUM)" != /usr/bin/chromium ]; then echo "TDMR1_CHROMIUM=$(TDMR1_CHROMIUM) does not exist: the browser tests fail"; \
	elif ! command -v apt-get >/dev/null; then echo "Chromium is missing, and there is no apt-get to install it: set TDMR1_CHROMIUM, or the browser tests fail"; \
	elif [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; \
	elif command -v sudo >/dev/null; then sudo apt-get update -qq && sudo apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; \
	else echo "Chromium is missing, and installing it needs root: run apt-get install chromium, or set TDMR1_CHROMIUM, or the browser tests fail"; \
	fi || echo "Chromium cannot be installed: the browser tests fail"

# Node and curl run the examples of docs/reward_protocol.md.
programs:
	@missing=""; command -v node >/dev/null || missing="nodejs"; command -v curl >/dev/null || missing="$$missing curl"; \
	if [ -z "$$missing" ]; then exit 0; \
	elif ! command -v apt-get >/dev/null; then echo "There is no apt-get to install $$missing: tests of the examples fail"; \
	elif [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; \
	elif command -v sudo >/dev/null; then sudo apt-get update -qq && sudo apt-get install -y -qq --no-install-recommends $$missing; \
	else echo "Installing $$missing needs root: run apt-get install $$missing, or tests of the examples fail"; \
	fi || echo "$$missing cannot be installed: tests of the examples fail"

test: setup chromium programs lint
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL) -m "not gpu and not long"

# The tests that are too long for `make test`. Run it before a release.
test-long: setup chromium
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL) -m "long and not gpu"

# Kills, damaged files, random settings, hostile rewards and clients, full disks: less than an hour on two cores.
# The same command continues after Ctrl-C. STRESS has further options, such as `--seed 1 --only kills:3`.
stress: setup
	$(BIN)/python benchmarks/stress_kit.py --output build/stress $(STRESS)

# Line coverage of `make test` and `make test-long`, including subprocesses and forked processes.
coverage: setup chromium programs
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL) -m "not gpu" --cov --cov-config=pyproject.toml --cov-report=term

# The documentation site, in build/site. Pages about commands and settings are written again first.
docs: setup
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Train the embedded model of shapes again: about an hour on two cores.
tiny-world: setup
	$(BIN)/python examples/tiny_world/base.py --output build/tiny-world/base
	$(BIN)/python examples/tiny_world/pretrain.py --base build/tiny-world/base --output build/tiny-world/teacher
	$(BIN)/tdmr1 distill --model tiny-tdm --model-path build/tiny-world/teacher/pipeline --output build/tiny-world/student
	$(BIN)/python examples/tiny_world/package.py --teacher build/tiny-world/teacher/pipeline --student build/tiny-world/student

# Train the embedded model of words again.
tiny-words: setup
	$(BIN)/python examples/tiny_world/base.py --world words --output build/tiny-words/base
	$(BIN)/python examples/tiny_world/pretrain.py --world words --base build/tiny-words/base --output build/tiny-words/teacher --minutes 30
	$(BIN)/tdmr1 distill --model tiny-words-tdm --model-path build/tiny-words/teacher/pipeline --output build/tiny-words/student
	$(BIN)/python examples/tiny_world/package.py --world words --teacher build/tiny-words/teacher/pipeline --student build/tiny-words/student

# Train the embedded model of pairs again. It starts from the embedded model of shapes.
tiny-pairs: setup
	$(BIN)/python examples/tiny_world/pretrain.py --world pairs --base tdmr1_core/tiny/pipeline --output build/tiny-pairs/teacher --minutes 28 --muon-lr 2e-3 --adam-lr 7e-4
	$(BIN)/tdmr1 distill --model tiny-pairs-tdm --model-path build/tiny-pairs/teacher/pipeline --output build/tiny-pairs/student
	$(BIN)/python examples/tiny_world/package.py --world pairs --teacher build/tiny-pairs/teacher/pipeline --student build/tiny-pairs/student

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
