# Two commands: `make repro` runs the pipeline, `make test` the tests. Both set up .venv first, where needed.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PIP := python -m pip install --disable-pip-version-check
TEST := pytest -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: repro test test-all lint gpu

repro: .venv/ready
	dvc repro
	python -m tools.scores
	@git diff --quiet HEAD -- dvc.lock metrics || printf '%s\n' \
	    'Keep it: git add -A && git commit -m "Results of this machine"    (what comes next is compared with your last commit)'

test: .venv/tests
	$(TEST)

test-all: .venv/tests
	$(TEST) -m ""

lint: .venv/tests
	ruff check .
	ruff format --check .

gpu: .venv/ready # what only a GPU can show, in eight minutes: docs/hardware.md
	python -m benchmarks.gpu

.venv/ready: requirements.txt constraints.txt
	@$(PYTHON) tools/preflight.py
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt
	touch .venv/ready

.venv/tests: .venv/ready requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	touch .venv/tests
