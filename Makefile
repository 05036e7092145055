# Needs python3 (3.11 to 3.13) and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: push_t experiments results test test-fast check format benchmarks clean

push_t: $(READY) ## train the energy policy on Push-T, evaluate it, write a video and a report
	$(BIN)/python -m ebt_policy.train task=push_t resume=true

experiments: $(READY) ## all experiments behind README.md, from training to tables: seven hours on 2 cores
	$(BIN)/python -m benchmarks.compare
	$(BIN)/python -m benchmarks.ablations
	$(BIN)/python -m benchmarks.energy
	$(BIN)/python -m benchmarks.recovery
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.pictures
	$(BIN)/python -m benchmarks.readme

test: $(READY) ## all tests
	$(BIN)/python -m pytest

test-fast: $(READY) ## the tests that neither train nor compile nor install
	$(BIN)/python -m pytest -m "not slow"

results: $(READY) ## the documents' tables and figures from the stored results
	$(BIN)/python -m benchmarks.readme

check: $(READY) ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: $(READY) ## speed ratios of training steps and of chunk latency
	$(BIN)/python -m benchmarks.speed

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
