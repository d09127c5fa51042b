# What can be done here: `make` lists it. Everything runs in .venv, which the first target that needs it sets up.
#   make setup TORCH=cpu|cuda      another build of torch than the machine suggests
#   make setup PYTHON=/path/to/python3.11
#   make test ARGS="tests/data/test_formats.py -k parquet"

python := .venv/bin/python
# One thread each: the tests' matrices are tiny, and threads of two busy processes spin against each other.
pytest := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(python) -m pytest --timeout 300

.PHONY: help setup demo bench test test-slow faults audit check lint types clean

help: ## List these targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.ready ## Make .venv with the pinned requirements, and torch for a GPU if there is one.

demo: setup ## Distill a tiny model from data to scores, offline, in minutes on a CPU.
	$(python) benchmarks/demo.py

bench: setup ## Measure speed and memory beside other tools into benchmarks/RESULTS.md; installs requirements-bench.txt.
	$(python) -m pip install -q -r requirements-ctranslate2.txt -r requirements-bench.txt
	$(python) benchmarks/bench.py --write benchmarks/RESULTS.md $(ARGS)
	$(python) benchmarks/data_size.py --output_dir outputs/data_size

test: setup ## Run the tests.
	$(pytest) -n 2 $(ARGS)

test-slow: setup ## Run the tests that take minutes each.
	$(pytest) -m slow $(ARGS)

faults: setup ## Kill every script a hundred times, continue, and compare with runs to the end.
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(python) -m tests.faults --kills 100 $(ARGS)

audit: setup ## Ask whether the pinned versions have known weaknesses; needs the internet.
	$(python) -m venv .venv/audit
	.venv/audit/bin/python -m pip install -q pip-audit==2.10.1
	.venv/audit/bin/python -m pip_audit --strict --no-deps --disable-pip $(patsubst %,-r %,$(wildcard requirements*.txt))

check: lint types test ## Lint, check types and test: what a change must pass.

lint: setup ## Check style and layout with ruff.
	$(python) -m ruff check .
	$(python) -m ruff format --check .

types: setup ## Check types with mypy where pyproject.toml says so.
	$(python) -m mypy

clean: ## Remove caches; .venv, datasets and outputs stay.
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +

# TORCH given by name: look at .venv again, however new it is.
ifneq ($(origin TORCH),undefined)
.PHONY: .venv/.ready
endif

.venv/.ready: requirements.txt requirements-dev.txt .ci/setup_venv
	@.ci/setup_venv
