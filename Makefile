# make demo   trains a small spiking BERT on synthetic question pairs
# make test   lint, types and every test
# make test-lowest   a quick subset of the tests with the lowest versions allowed
# make audit   known vulnerabilities of what is installed
# make release CHECKPOINTS="outputs/a outputs/b" [LICENSE=mit]   folders ready to push, in release/
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Whatever a run has left: weights with the record of their results beside them.
CHECKPOINTS ?= $(patsubst %/results.json,%,$(wildcard outputs/*/results.json spikenlp/weights/*/results.json))

.PHONY: demo test test-lowest audit lint release clean

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

# worksteal: neighbours run in one worker, so that most modules make their fixtures once.
test: lint
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal

# Losses, metrics, saving and loading, and training, with the lowest versions that pyproject.toml allows.
LOWEST = tests/losses tests/metrics tests/models/test_checkpoint.py tests/training/test_trainer.py

.venv-lowest/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --constraint constraints-lowest.txt torch
	.venv-lowest/bin/pip install --quiet --constraint constraints-lowest.txt --editable . \
		pytest pytest-xdist hypothesis
	touch $@

test-lowest: .venv-lowest/.installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -m "not slow" \
		--numprocesses 2 --dist worksteal $(LOWEST) \
		tests/neurons --deselect tests/neurons/test_streaming.py::test_compiled_too

# Known vulnerabilities of the versions installed; asks an advisory service. --strict: a package that it does
# not know is a failure, where it would count as clean.
audit: $(VENV)/.installed
	$(PYTHON) -m venv .cache/audit
	.cache/audit/bin/pip install --quiet pip-audit
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' > .cache/locked.txt
	.cache/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement .cache/locked.txt

release: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m spikenlp.hub.release $(CHECKPOINTS) $(if $(LICENSE),--license $(LICENSE))

clean:
	rm -rf $(VENV) .venv-lowest .cache outputs
