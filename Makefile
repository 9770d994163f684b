# The two commands that matter: `make repro` and `make test`. `make help` lists all.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
INSTALLED := $(VENV)/.installed
# Stages call plain `python`; inside make that is the one of the virtual environment.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup repro show test numeric test-slurm bench against lint types coverage golden reference params lock ui clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(INSTALLED) ## Create .venv and install the pinned packages

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version)'
	@echo "installing the pinned packages into $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar off --quiet -r requirements.lock
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@touch $@

repro: $(INSTALLED) ## Run the whole study and show its table
	@dvc repro
	@$(MAKE) --no-print-directory show

show: $(INSTALLED) ## Show the table of the last run and where its files are
	@python -m tables.render --show
	@echo
	@echo "Runs:    $(VENV)/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db"
	@echo "         then open http://127.0.0.1:5000"

test: $(INSTALLED) ## Run the whole test suite
	@python -m pytest -n auto --maxprocesses 8 --dist loadfile

numeric: $(INSTALLED) ## Run the tests of arithmetic as lesser processors would compute
	@python -m tests.instruction_sets $(ARGS)

test-slurm: $(INSTALLED) ## Run the tests on a real SLURM (root)
	@tests/slurm/cluster.sh up
	@python -m pytest -m slurm -n 0 tests/slurm

bench: $(INSTALLED) ## Measure speed and memory, e.g. make bench ARGS="steps --rounds 3"
	@python -m benchmarks $(ARGS)

against: $(INSTALLED) ## Compare the speed of the micro model with the commit before
	@python -m benchmarks.against

lint: $(INSTALLED) ## Check style and formatting
	@ruff check . && ruff format --check .

types: $(INSTALLED) ## Check types
	@mypy

coverage: $(INSTALLED) ## Run the tests of ofq_core with coverage
	@python -m pytest --cov --cov-report=term tests/quant tests/nn tests/models tests/data tests/training tests/test_*.py

golden: $(INSTALLED) ## Refresh the golden losses of the tiny pipeline (see docs/reproducing.md)
	@python -m tests.refresh_golden

reference: $(INSTALLED) ## Take the results of the last run as the committed reference
	@python -m tables.reference --teacher results/teacher/metrics.json \
		--results results/digits_full --noise results/noise/digits_full.json
	@python -m tables.readme

params: $(INSTALLED) ## Compose conf/ into params.yaml, e.g. make params ARGS="preset=smoke"
	@python -m pipelines.params $(ARGS)

lock: ## Pin what is installed in .venv
	@{ head -2 requirements.lock; $(VENV)/bin/python -m pip freeze --all --exclude-editable \
	  | grep -v '^pip==' | sed 's/^\(torch==[0-9.]*\)+.*/\1/'; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock

ui: $(INSTALLED) ## Open the MLflow UI on the local store
	@mlflow ui --backend-store-uri sqlite:///mlflow.db

clean: ## Remove results and caches, keep .venv and dvc.lock
	@[ ! -d .slurm/jobs ] || python -m slurm.cancel --all
	rm -rf data results tables/rendered .partial .slurm mlflow.db* mlruns .dvc/cache .dvc/tmp
