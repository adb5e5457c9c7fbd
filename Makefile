# Everything runs in .venv of this checkout. `make demo` and `make test` each work alone on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RANKS ?= 2

.PHONY: install demo test test-long docs fuzz soak lint audit test-gpu bench-similarity bench-gpu clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python launchers/build_shards.py experiment=demo
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/deepspeed --num_gpus $(RANKS) launchers/train.py experiment=demo method=procvlr run=runs/demo-procvlr
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/deepspeed --num_gpus $(RANKS) launchers/train.py experiment=demo
	$(BIN)/python launchers/report.py run=runs/demo compare='[runs/demo-procvlr]'

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not long" -n 2 --dist loadfile

test-long: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long

test-gpu: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu -n 8 --dist worksteal

fuzz: install
	FUZZ_FACTOR=20 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz -n 2 --dist worksteal

soak: install
	$(BIN)/python tests/soak.py --minutes 60

bench-similarity: install
	$(BIN)/python benchmarks/bench_similarity.py --device cpu --threads 1

bench-gpu: install
	$(BIN)/python benchmarks/bench_similarity.py --device cuda
	$(BIN)/python benchmarks/bench_attention.py --device cuda
	$(BIN)/python benchmarks/bench_attention.py --device cuda --sweep
	$(BIN)/python benchmarks/bench_patches.py --device cuda
	$(BIN)/python benchmarks/bench_step.py --device cuda
	$(BIN)/python benchmarks/profile_step.py --device cuda
	$(BIN)/python benchmarks/bench_eval.py --device cuda

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml ace_dist kernels launchers
	$(BIN)/uv pip check --quiet --python $(BIN)/python

# The documentation as a site in site/, warnings as errors.
docs: install
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Known weaknesses of the pinned packages; needs the network.
audit: install
	$(BIN)/uv tool run pip-audit --requirement constraints.txt --no-deps --disable-pip

clean:
	rm -rf runs data
