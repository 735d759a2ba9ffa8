# Builds into a virtual environment at .venv; needs Python 3.11 or later, cargo and a C compiler.

PYTHON ?= python3
BIN := .venv/bin
TRACE := examples/traces/linux-numpy-thp.ftrace.xz
# What the extension is made of: anything newer than the last build makes a new one.
SOURCES := $(shell find crates -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock pyproject.toml

.PHONY: all build run test test-rust test-python test-numpy bench lint format clean

all: build

build: .venv/built

# Two steps, so that only the first ever needs the network.
.venv/tools:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip 'maturin>=1.9.4,<2'
	touch $@

.venv/built: .venv/tools $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[cli,report,test,lint]'
	touch $@

# The main job on a recorded trace: a table here, the curves in a page.
run: build
	$(BIN)/potad replay $(TRACE) --html potad-report.html --json potad-report.json
	@echo "The report with curves and maps is potad-report.html"

test: test-rust test-python

test-rust:
	cargo test --locked -p potad -p potad-replay

test-python: build
	$(BIN)/python -m pytest

# NumPy's own tests with an arena as its allocator; minutes.
test-numpy: build
	$(BIN)/python tests/numpy_suite.py

bench: build
	cargo bench --locked -p potad --bench peers
	$(BIN)/python -m pip install --quiet 'setuptools>=70.1' pybind11 # tlsfallocator does not ask for them
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[bench]'
	$(BIN)/python benchmarks/python_calls.py
	$(BIN)/python benchmarks/pools.py

lint: build
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest potad._core --allowlist tests/stubs_allowed.txt --ignore-unused-allowlist

format: build
	cargo fmt
	$(BIN)/ruff format

clean:
	rm -rf target .venv potad-report.html potad-report.json
