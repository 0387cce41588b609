# make demo    a real model writes 800 tokens through the C library, its cache compressed on the way
# make test    every test
# make build   target/release/{reasoning-rpc,libreasoning_rpc.so}, .venv/bin/reasoning-rpc-export
# make bench   this library beside llama.cpp, OpenVINO and ONNX Runtime on this machine; BENCH="--quick" for some 5 minutes
# make install PREFIX=/usr/local, make uninstall PREFIX=/usr/local

PYTHON ?= python3
PREFIX ?= /usr/local
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
EXPORT := $(VENV)/bin/reasoning-rpc-export
GGUF := models/SmolLM2-135M-Instruct.Q4_1.gguf
# Tests may unwrap, panic and print.
LINTS_OF_THE_LIBRARY := $(addprefix -A clippy::,unwrap_used expect_used panic print_stdout print_stderr)
GOLDEN_MODELS := qwen2_p32 llama_p48_c8 qwen2_group_p64_c2

export RRPC_ONNXRUNTIME ?= $(CURDIR)/third_party/onnxruntime/libonnxruntime.so
# For the exporter, which loads ONNX Runtime without us: its builds report to their maker unless told.
export ORT_DISABLE_TELEMETRY ?= 1
export RRPC_SMOLLM2_GGUF ?= $(CURDIR)/$(GGUF)

.PHONY: build demo test bench lint install uninstall test-models test-rust test-shuttle test-export test-train test-abi test-cpp \
	test-go test-cli test-service test-packaging reasoners reasoners-curve rust runtime clean

build: rust runtime $(VENV)/installed

rust:
	cargo build --release --locked -p reasoning-rpc-capi -p reasoning-rpc-cli

runtime: third_party/onnxruntime/version

third_party/onnxruntime/version: scripts/fetch-onnxruntime
	scripts/fetch-onnxruntime $(PYTHON)
	touch $@

# ONNX Runtime beside the program and the library, where both look first; the library under its soname.
target/release/libonnxruntime.so: third_party/onnxruntime/version
	mkdir -p target/release
	ln -sf ../../third_party/onnxruntime/libonnxruntime.so $@

target/release/libreasoning_rpc.so.0:
	mkdir -p target/release
	ln -sf libreasoning_rpc.so $@

build: target/release/libonnxruntime.so target/release/libreasoning_rpc.so.0

$(VENV)/requirements: onnx-export/requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --require-hashes -r onnx-export/requirements.lock
	touch $@

$(VENV)/installed: $(VENV)/requirements onnx-export/pyproject.toml $(wildcard onnx-export/reasoning_rpc_export/*.py)
	$(PIP) install --quiet --no-deps --no-build-isolation --force-reinstall ./onnx-export
	touch $@

$(GGUF): scripts/fetch-smollm2
	scripts/fetch-smollm2 $(PYTHON)
	touch $@

models/smollm2-%/manifest.json: $(GGUF) $(VENV)/installed
	$(EXPORT) $(GGUF) models/smollm2-$* --weights $*

# The same weights, come as floats.
models/smollm2-hf-int4/manifest.json: $(GGUF) $(VENV)/installed scripts/dequantize-gguf
	rm -rf models/smollm2-hf
	$(VENV)/bin/python scripts/dequantize-gguf $(GGUF) models/smollm2-hf
	$(EXPORT) models/smollm2-hf models/smollm2-hf-int4 --weights int4
	rm -rf models/smollm2-hf

models/golden/%-cached/manifest.json: $(VENV)/installed
	$(EXPORT) tests/golden/generation/$* models/golden/$*-cached --weights fp32 --flavour cached

models/golden/%-portable/manifest.json: $(VENV)/installed
	$(EXPORT) tests/golden/generation/$* models/golden/$*-portable --weights fp32 --flavour portable

test-models: $(foreach m,$(GOLDEN_MODELS),models/golden/$(m)-cached/manifest.json models/golden/$(m)-portable/manifest.json) \
	$(foreach w,fp32 int8 int4 hf-int4,models/smollm2-$(w)/manifest.json)

demo: build models/smollm2-int4/manifest.json target/example
	LD_LIBRARY_PATH=target/release target/example models/smollm2-int4

target/example: bindings/c/example.c include/reasoning_rpc.h rust
	$(CC) -std=c99 -O2 -Wall -Wextra -Wpedantic -Werror -Iinclude $< -o $@ -Ltarget/release -lreasoning_rpc

test: build test-models lint test-export test-train test-rust test-shuttle test-abi test-cpp test-go test-cli test-service test-packaging

lint:
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --lib --bins -- -D warnings
	cargo clippy --release --locked --workspace --all-targets -- -D warnings $(LINTS_OF_THE_LIBRARY)
	cargo clippy --release --locked -p reasoning-rpc-engine --features shuttle --all-targets -- -D warnings $(LINTS_OF_THE_LIBRARY)

test-export: $(VENV)/installed $(GGUF)
	cd onnx-export && ../$(VENV)/bin/python -m pytest -q tests

# Training of small reasoners has an environment of its own: the exporter's does not have JAX.
onnx-export/.venv/installed: onnx-export/requirements-train.lock
	$(PYTHON) -m venv onnx-export/.venv
	onnx-export/.venv/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r $<
	touch $@

# A few steps of a smaller model, and answers of the program beside it.
test-train: onnx-export/.venv/installed build
	cd onnx-export && .venv/bin/python -m pytest -q tests/test_small_reasoners.py

# The two models and the problems of docs/accuracy/reasoners.md; goes on where it was broken off.
reasoners: onnx-export/.venv/installed
	cd onnx-export && .venv/bin/python -m small_reasoners train ../models/reasoners

# Its tables and its plot, in models/reasoners/curve.
reasoners-curve: build reasoners
	cd onnx-export && .venv/bin/python -m small_reasoners curve ../models/reasoners --program ../target/release/reasoning-rpc

# Release: the real model decodes thousands of tokens.
test-rust: runtime test-models
	cargo test --release --locked --workspace

# The threads of the block pool and of the scheduler in thousands of orders.
test-shuttle:
	cargo test --release --locked -p reasoning-rpc-engine --features shuttle --lib shuttle

test-abi: build test-models
	tests/abi/run
	$(VENV)/bin/python -m pytest -q -rs tests/abi

test-cpp: build test-models
	tests/cpp/run

test-go: build test-models
	PYTHON=$(CURDIR)/$(VENV)/bin/python bindings/go/test

test-cli: build test-models third_party/chromium/packages
	$(VENV)/bin/python -m pytest -q -rs tests/cli

third_party/debian/packages: scripts/fetch-cpp-httplib scripts/fetch-debian
	scripts/fetch-cpp-httplib
	touch $@

# A browser for the pages of `reasoning-rpc trace`.
third_party/chromium/packages: scripts/fetch-chromium scripts/fetch-debian
	scripts/fetch-chromium
	touch $@

# The example service in C++, as its clients see it.
test-service: build test-models third_party/debian/packages
	$(VENV)/bin/python -m pytest -q -rs tests/service

# The library from outside: installed, found in each way, the programs of README.md.
test-packaging: build test-models
	PYTHON=$(CURDIR)/$(VENV)/bin/python tests/packaging/run

# The engines that the benchmark compares with, pinned; llama.cpp is built, which takes some 10 minutes.
tests/peers/.venv/installed: tests/peers/requirements.lock tests/peers/requirements-build.lock
	tests/peers/install $(PYTHON)

# Some 40 minutes on two cores that nothing else uses; the report goes to target/peers.
bench: build $(GGUF) tests/peers/.venv/installed
	PYTHONPATH=tests/peers tests/peers/.venv/bin/python -m peers.bench $(BENCH)

install: build
	scripts/install $(PREFIX)

uninstall:
	scripts/uninstall $(PREFIX)

clean:
	rm -rf target models third_party $(VENV)
