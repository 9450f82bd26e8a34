# `make run` and `make test` need Python 3.11+ and make; everything else is installed into .venv, once.
PYTHON ?= python3
PROFILE ?= mini
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PIP := $(INSTALL) --constraint constraints.txt
EXECUTE := $(BIN)/python -m nbconvert --to notebook --config .ci/notebook.py
export PROFILE

.PHONY: help run test lint evidence gpu drill notebook figures report constraints clean

help:  ## show this list
	@echo "make TARGET, first of all run or test; PROFILE=$(PROFILE)"
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  %-12s%s\n", $$1, $$2}' Makefile

run: .venv/installed  ## execute the notebook from top to bottom into checkpoints/runs/; PROFILE=mini-agnews for another profile
	@mkdir -p checkpoints/runs
	$(EXECUTE) --output-dir checkpoints/runs roberta_lora_agnews.ipynb

test: .venv/installed-dev  ## run the tests; TESTS='-m "not slow"' for the quick ones
	CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(TESTS)  # what is promised of a CPU, also beside a GPU
	$(if $(TESTS),,HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q tests/test_gpu.py)

lint: .venv/installed-dev  ## ruff, notebook included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

evidence: .venv/installed  ## rerun the committed runs, controls and baselines (needs AG News); PARTS="mini baselines" for some
	$(BIN)/python -m lora_helpers evidence $(PARTS)
	$(BIN)/python -m lora_helpers report

gpu:  ## on a CUDA device, with python3's torch and not .venv's: its tests and its parts of the evidence
	HF_HUB_OFFLINE=1 $(PYTHON) -m pytest -q tests/test_gpu.py
	$(PYTHON) -m lora_helpers evidence gpu-devices gpu-repeated gpu-headline gpu-course gpu-batches
	$(PYTHON) -m lora_helpers evidence mpnet-rivals-seeds mpnet-studies  # goes on where it was stopped
	$(PYTHON) -m lora_helpers report

drill: .venv/installed-dev  ## kills, faults and bad input in full; the counts go to checkpoints/reliability.json
	HF_HUB_OFFLINE=1 $(BIN)/python tests/drill.py

notebook: .venv/installed  ## execute the committed notebook in place
	$(EXECUTE) --inplace roberta_lora_agnews.ipynb

figures: .venv/installed  ## redraw figures/ from the committed records
	$(BIN)/python -m lora_helpers figures

report: .venv/installed  ## write the records' numbers into README, notebook and cards
	$(BIN)/python -m lora_helpers report

constraints:  ## write constraints.txt anew after a change of the requirements
	test -d .venv || $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	$(INSTALL) -r requirements.txt -r requirements-dev.txt
	$(BIN)/python tests/pins.py

clean:  ## remove the environment and your runs
	rm -rf .venv checkpoints/runs

.venv/installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("Python is too old, wanted 3.11: make PYTHON=python3.11 ...")'
	test -d .venv || $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }  # half of one would pass for whole
	$(PIP) -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(PIP) -r requirements-dev.txt
	touch $@
