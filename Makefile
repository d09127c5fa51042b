# `make` lists the targets. Everything runs in .venv, which the first target that needs it creates.
#   make setup TORCH=cpu|cuda      choose the build of torch
#   make setup PYTHON=/path/to/python3.11
#   make test ARGS="tests/data/test_formats.py -k parquet"

python := .venv/bin/python
# One thread per process: the matrices in tests are tiny, and threads of two busy processes slow each other down.
pytest := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(python) -m pytest --timeout 300

.PHONY: help setup demo bench test test-slow faults audit check lint types clean

help: ## List these targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.ready ## Create .venv with the pinned requirements; torch for CUDA if there is a GPU.

demo: setup ## Run the whole study in miniature, offline, in minutes on a CPU.
	$(python) study_main.py --plan arg_configs/studies/demo.yaml --jobs 2

bench: setup ## Compare speed and memory with other tools; writes benchmarks/RESULTS.md, installs requirements-bench.txt.
	$(python) -m pip install -q -r requirements-ctranslate2.txt -r requirements-bench.txt
	$(python) benchmarks/bench.py --write benchmarks/RESULTS.md $(ARGS)
	$(python) benchmarks/data_size.py --output_dir outputs/data_size
	$(python) benchmarks/processes.py --data outputs/data_size/original.json

test: setup ## Run the tests.
	$(pytest) -n 2 --dist worksteal $(ARGS)

test-slow: setup ## Run the slow tests, which take minutes each.
	$(pytest) -m slow $(ARGS)

faults: setup ## Kill every script a hundred times, resume it, and compare the results with an uninterrupted run.
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(python) -m tests.faults --kills 100 $(ARGS)

audit: setup ## Check the pinned versions for known vulnerabilities; needs the internet.
	$(python) -m venv .venv/audit
	.venv/audit/bin/python -m pip install -q pip-audit==2.10.1
	.venv/audit/bin/python -m pip_audit --strict --no-deps --disable-pip $(patsubst %,-r %,$(wildcard requirements*.txt))

check: lint types test ## Run lint, types and test; every change must pass.

lint: setup ## Check style and layout with ruff.
	$(python) -m ruff check .
	$(python) -m ruff format --check .

types: setup ## Check types with mypy.
	$(python) -m mypy

clean: ## Remove caches; keep .venv, datasets and outputs.
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +

# If TORCH is set, check .venv even if it is up to date.
ifneq ($(origin TORCH),undefined)
.PHONY: .venv/.ready
endif

.venv/.ready: requirements.txt requirements-study.txt requirements-dev.txt .ci/setup_venv
	@.ci/setup_venv
