# musidecar: `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PY := .venv/bin/python
CC ?= gcc
C_FILES := $(shell find ffi protocols tests musidecar/bench -name '*.c' 2>/dev/null | sort)
CORE_FILES := $(wildcard ffi/core/*.c ffi/fabric/*.c ffi/engine/*.c protocols/*/*.c)
C_FLAGS := -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -I. -Iffi
PYTEST := $(PY) -m pytest

.PHONY: help setup build demo test test-all bench lint asan ubsan tsan sanitize clean

help: ## This list
	@awk -F':.*## ' '/^[a-z -]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## .venv with everything in it; Debian packages where they are missing
	@tools/setup

.venv/bin/musidecar:
	@tools/setup

build: .venv/bin/musidecar ## Compile the C code again, where it changed
	@mkdir -p build
	@flock build/.lock $(PY) setup.py -q build_ext --inplace

demo: build ## See a node die and nothing get lost
	@.venv/bin/musidecar demo

test: build ## Unit, simulator and fault tests (under 30 minutes on 2 cores)
	$(PYTEST) -m "not slow"

test-all: build ## And the slow ones
	$(PYTEST) tests

bench: build ## Beside redis-server, HAProxy, twemproxy and WAIT, as ratios
	@tools/setup --bench
	.venv/bin/musidecar bench proxy

lint: build ## ruff, mypy, and the compiler with every warning an error
	.venv/bin/ruff check .
	.venv/bin/mypy
	@printf '%s\n' $(C_FILES) | xargs -P 2 -I{} $(CC) $(C_FLAGS) -O2 -c {} -o /dev/null
	@echo "C: $(words $(C_FILES)) files without a warning"

# The native drivers (tests/native: replicas as threads over one mapping; tests/sim: seeded schedules) and the parsers'
# fuzz mains (tests/fuzz), built with a sanitizer and run. TSan sees nothing across processes, so threads it is.
NATIVE := $(wildcard tests/native/*.c tests/sim/*.c tests/fuzz/*.c)
SANITIZE_asan := -fsanitize=address
SANITIZE_ubsan := -fsanitize=undefined
SANITIZE_tsan := -fsanitize=thread -Wno-tsan
# What a driver is run with: nodes, first seed, seeds, steps, planted bugs.
ARGUMENTS_schedule := 3 1 100 2000 0

asan ubsan tsan: ## Run the native test drivers under this sanitizer
	@[ -n "$(NATIVE)" ] || { echo "$@: nothing in tests/native, tests/sim and tests/fuzz"; exit 1; }
	@mkdir -p build/$@
	@$(foreach file,$(NATIVE),$(MAKE) --no-print-directory sanitized KIND=$@ FILE=$(file) &&) true

.PHONY: sanitized
sanitized:
	@echo "$(KIND): $(FILE) $(ARGUMENTS_$(basename $(notdir $(FILE))))"
	@$(CC) $(C_FLAGS) -O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all $(SANITIZE_$(KIND)) \
	    -o build/$(KIND)/$(basename $(notdir $(FILE))) $(FILE) $(CORE_FILES) -lpthread -lm
	@build/$(KIND)/$(basename $(notdir $(FILE))) $(ARGUMENTS_$(basename $(notdir $(FILE))))

sanitize: asan ubsan tsan ## All three

clean: ## Everything that was built, and .venv
	rm -rf build dist .venv *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis ffi/*.so
