# make demo    set up and reconstruct the bundled clip
# make test    set up and run the tests
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint type fix bench results docs textures clean
.DELETE_ON_ERROR:

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/stream4d demo --overwrite

# One process per core, one thread each: small tensors gain nothing from more.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell stream4d tests docs configs README.md CHANGELOG.md

type: setup
	$(BIN)/mypy

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only
	$(BIN)/python -m stream4d.eval.bench

# Needs the shared evaluation clips beside the checkout.
results: setup
	$(BIN)/python -m stream4d.eval.results --data ../shared/data --out docs/results.md --work build/results

docs: setup
	$(BIN)/python -m stream4d.store.format_page > docs/store-format.md

textures: setup
	$(BIN)/python -m stream4d.train.fetch_textures textures

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
