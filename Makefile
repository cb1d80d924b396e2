# Everything runs in .venv, made from pyproject.toml and the versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo avs test test-slow bench lint clean
help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: .venv/installed ## Train an AV, merge it at several λ, evaluate, plot (minutes)
	$(BIN)/python benchmarks/demo.py

avs: .venv/installed ## Train the medical, financial and legal AVs of the default base (an hour or so on one CPU core)
	$(BIN)/av-train --domain medical
	@# Three levels at three λ: one epoch leaves the middle one of law at .78.
	$(BIN)/av-train --domain financial --domain legal --num_train_epochs 2

test: lint ## Check the code's form, types and layers, and run the tests
	@# More processes than cores: a third of the time goes into waiting for servers and children.
	$(BIN)/pytest --numprocesses $$(($$(nproc) * 3 / 2)) --maxprocesses 8 --dist worksteal

lint: .venv/installed ## Check the code's form, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# training and evaluation lie in the package where it is installed: there the others see them.
	rm -rf build/tree && mkdir -p build/tree && cp -r mergekit_av pyproject.toml build/tree
	cp -r training evaluation build/tree/mergekit_av
	cd build/tree && ../../$(BIN)/mypy --no-error-summary --package mergekit_av
	cd build/tree && PYTHONPATH=. ../../$(BIN)/lint-imports --no-cache

test-slow: .venv/installed ## Run the tests that take minutes, mergekit's own suite among them
	$(BIN)/pytest -m slow

bench: .venv/installed ## Measure speed and memory against mergekit, copying, scoring, the grid and TRL
	$(BIN)/python benchmarks/merge.py
	$(BIN)/python benchmarks/extraction.py
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/knobs.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/prompts.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/imports.py
	$(BIN)/python benchmarks/architectures.py

clean: ## Remove the environment and everything the demo made
	rm -rf .venv build *.egg-info demo
