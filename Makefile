# `make run` and `make test` need Python 3.11+ and make; everything else is installed into .venv, once.
PYTHON ?= python3
PROFILE ?= mini
BIN := .venv/bin
export PROFILE

.PHONY: run test lint drill evidence notebook figures report clean

# The second pass folds the progress bars' many states into their last one.
EXECUTE := $(BIN)/jupyter nbconvert --to notebook --execute --ExecutePreprocessor.timeout=-1 --ExecutePreprocessor.record_timing=False
FOLD := $(BIN)/jupyter nbconvert --to notebook --inplace --CoalesceStreamsPreprocessor.enabled=True

run: .venv/installed  ## execute the notebook from top to bottom; the executed copy goes to checkpoints/runs/
	mkdir -p checkpoints/runs
	$(EXECUTE) --output-dir checkpoints/runs roberta_lora_agnews.ipynb
	$(FOLD) checkpoints/runs/roberta_lora_agnews.ipynb

test: .venv/installed-dev  ## run the tests
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

lint: .venv/installed-dev  ## ruff, notebook included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

evidence: .venv/installed  ## rerun the committed runs, controls and baselines (needs AG News; PARTS="mini baselines")
	$(BIN)/python -m lora_helpers evidence $(PARTS)
	$(BIN)/python -m lora_helpers report

drill: .venv/installed-dev  ## kills, faults and bad input in full; the counts go to checkpoints/reliability.json
	HF_HUB_OFFLINE=1 $(BIN)/python tests/drill.py

notebook: .venv/installed  ## execute the committed notebook in place
	$(EXECUTE) --inplace roberta_lora_agnews.ipynb
	$(FOLD) roberta_lora_agnews.ipynb

figures: .venv/installed
	$(BIN)/python -m lora_helpers figures

report: .venv/installed
	$(BIN)/python -m lora_helpers report

clean:  ## remove the environment and your runs
	rm -rf .venv checkpoints/runs

.venv/installed: requirements.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
