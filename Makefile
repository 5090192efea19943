# make demo   trains a small spiking BERT on synthetic question pairs
# make test   lint, types and every test
# make release CHECKPOINTS="outputs/a outputs/b" [LICENSE=mit]   folders ready to push, in release/
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Whatever a run has left: weights with the record of their results beside them.
CHECKPOINTS ?= $(patsubst %/results.json,%,$(wildcard outputs/*/results.json spikenlp/weights/*/results.json))

.PHONY: demo test lint release clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/accelerate launch recipes/qqp_tmc.py

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2

release: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m spikenlp.hub.release $(CHECKPOINTS) $(if $(LICENSE),--license $(LICENSE))

clean:
	rm -rf $(VENV) .cache outputs
