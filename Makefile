# `make train` and `make test` are all a newcomer needs; both make their own virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup train test test-fast lint tiny-world tiny-words clean

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
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "unit"

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not gpu"

# Make the packaged model again: about an hour of two cores.
tiny-world: setup
	$(BIN)/python examples/tiny_world/base.py --output build/tiny-world/base
	$(BIN)/python examples/tiny_world/pretrain.py --base build/tiny-world/base --output build/tiny-world/teacher
	$(BIN)/tdmr1 distill --model tiny-tdm --model-path build/tiny-world/teacher/pipeline --output build/tiny-world/student
	$(BIN)/python examples/tiny_world/package.py --teacher build/tiny-world/teacher/pipeline --student build/tiny-world/student

# The same for the model of words.
tiny-words: setup
	$(BIN)/python examples/tiny_world/base.py --world words --output build/tiny-words/base
	$(BIN)/python examples/tiny_world/pretrain.py --world words --base build/tiny-words/base --output build/tiny-words/teacher
	$(BIN)/tdmr1 distill --model tiny-words-tdm --model-path build/tiny-words/teacher/pipeline --output build/tiny-words/student
	$(BIN)/python examples/tiny_world/package.py --world words --teacher build/tiny-words/teacher/pipeline --student build/tiny-words/student

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
