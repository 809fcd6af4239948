# Every target does its own set-up; `make help` lists them.
#
#   DEVICE=cpu|cuda   environment to use: .venv or .venv-cuda, so that the CPU and CUDA builds of fbgemm never meet
#   PYTHON=...        interpreter for the environment, 3.11 to 3.13
#   PIP_ARGS="..."    further arguments for pip, e.g. an index that has CPU builds of torch
#   ARGS="..."        train: options, then key=value overrides;  test: arguments of pytest;  docs: of mkdocs
#   JOBS=2            test: processes; 0 for none but this one, as -s and --pdb need

DEVICE ?= cpu
JOBS ?= 2
VENV := $(if $(filter cuda,$(DEVICE)),.venv-cuda,.venv)
DATA := data/cdnow/test.parquet

export PYTHON PIP_ARGS
# Idle OpenMP threads sleep instead of spinning on cores that another rank needs.
export OMP_WAIT_POLICY ?= PASSIVE
# The commands below are those of the environment, as after `source $(VENV)/bin/activate`.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
ifeq ($(DEVICE),cpu)
# pip's torch may be a CUDA build, beside the CPU build of fbgemm: keep it off the GPU.
export CUDA_VISIBLE_DEVICES :=
endif

.DEFAULT_GOAL := help
.PHONY: help setup data train test lint format types check docs doctor wheel image clean

help:  ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10
	@echo
	@sed -n '3,7s/^#//p' Makefile

setup:  ## Make the virtual environment (nothing to do the second time)
	@requirements/setup.sh $(DEVICE) $(VENV)

data: setup  ## Get the purchase log of the example, where it is missing
	@test -f $(DATA) || python examples/cdnow/prepare.py

train: setup data  ## Train HTLNet on the example
	torchx run components/train.py:htlnet $(ARGS)

# One thread a rank; some tests start two ranks, others leave a core idle, which another process of tests then has.
test: export OMP_NUM_THREADS ?= 1
test: setup data  ## Run the tests
	python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: setup  ## Check style and spelling
	ruff check
	ruff format --check
	codespell
	hadolint docker/Dockerfile docker/Dockerfile.cpu

format: setup  ## Mend what ruff can mend
	ruff check --fix
	ruff format

types: setup  ## Check types
	mypy

check: lint types test  ## All of lint, types, test

# Without the theme's advice on another site generator.
docs: export NO_MKDOCS_2_WARNING := 1
docs: setup  ## Build the documentation into site/; ARGS=serve shows it while you write
	mkdocs $(or $(ARGS),build --strict)

doctor: setup  ## Name what is wrong with the environment, and the command that mends it
	torchrec-mtl doctor

wheel: setup  ## Build the wheel into dist/
	python -m build --wheel --no-isolation

image:  ## Build the container image torchrec-mtl:latest, or :cuda (needs Docker)
	docker build -f docker/$(if $(filter cuda,$(DEVICE)),Dockerfile,Dockerfile.cpu) --build-arg PIP_ARGS="$(PIP_ARGS)" \
		-t torchrec-mtl:$(if $(filter cuda,$(DEVICE)),cuda,latest) .

clean:  ## Remove build products and caches (environments, data and runs stay)
	rm -rf build dist site *.egg-info requirements/fbgemm-gpu-stub/build requirements/fbgemm-gpu-stub/*.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find torchrec_mtl components examples tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
