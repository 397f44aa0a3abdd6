# Two commands: `make repro` runs the pipeline, `make test` the tests. Both set up .venv first, where needed.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: repro test test-all lint

repro: .venv/ready
	dvc repro
	python -m tools.scores

test: .venv/ready
	pytest -n 3 --dist loadfile --no-loadscope-reorder

test-all: .venv/ready
	pytest -n 3 --dist loadfile --no-loadscope-reorder -m "slow or not slow"

lint: .venv/ready
	ruff check .
	ruff format --check .

.venv/ready: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch .venv/ready
