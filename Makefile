# The two to start with: `make demo`, `make test`.  Everything they need is installed into .venv and .peers.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-all test-install lint bench fixtures clean

demo: .venv/ready  ## convert a fixture, verify the result, and let both speak
	@rm -rf build/demo build/demo.html && mkdir -p build
	$(BIN)/llama-convert convert fixtures/llama2-mp2 build/demo
	$(BIN)/llama-convert verify build/demo --source fixtures/llama2-mp2 --record \
		--prompt "Once upon a time" --max-new-tokens 128 --report build/demo.html

test: .venv/ready .peers/ready  ## everything that fits into ten minutes on two cores
	$(BIN)/python -m pytest -n auto

test-all: .venv/ready .peers/ready  ## the long ones too
	$(BIN)/python -m pytest -n auto -m "slow or not slow"

test-install: .venv/ready  ## the wheel without extras, in new environments
	$(BIN)/python -m pytest -m slow tests/test_packaging.py -k TestCore

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.style

bench: .venv/ready .peers/ready  ## ours, cp, the old script and transformers on the same bytes
	$(BIN)/python -m tests.bench

fixtures: .venv/ready  ## train the small checkpoints anew
	$(BIN)/python -m fixtures.make

# What the tests of stores and clusters need is pinned and installed as it is: pip would search for hours.
.venv/ready: pyproject.toml tests/stores.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable ".[dev,verify,report,hub]"
	$(PIP) --no-deps --requirement tests/stores.txt
	@touch $@

# Code we did not write, which the tests hold ours against.  Each version lives in a folder of its own and
# reads torch and the rest from .venv.  fairscale has no wheel: the setuptools that torch needs builds it.
# dill, which datasets hashes with, takes a module outside a folder of the name site-packages for the user's
# own, and would pickle it whole.
.peers/ready: Makefile .venv/ready
	rm -rf .peers
	$(PIP) --no-deps --target .peers/transformers-4.45 transformers==4.45.2 tokenizers==0.20.3 huggingface_hub==0.25.2 \
		accelerate==0.34.2 psutil
	$(PIP) --no-deps --target .peers/transformers-5 transformers==5.23.0 tokenizers huggingface_hub
	$(PIP) --no-deps --no-build-isolation --target .peers/meta llama-models==0.3.0 fairscale==0.4.13 pillow
	for version in 0.2.1 0.4.0 0.5.0 0.6.1; do \
		$(PIP) --no-deps --target .peers/torchtune-$${version%.*} torchtune==$$version || exit; done
	$(PIP) --no-deps --target .peers/uses/site-packages bitsandbytes==0.50.2 peft==0.21.2 trl==1.16.0 datasets==5.2.0 \
		accelerate==1.15.0 pandas==3.1.1 pyarrow==26.0.1 dill==0.4.1 multiprocess==0.70.19
	@touch $@

clean:
	rm -rf .venv .peers build dist
