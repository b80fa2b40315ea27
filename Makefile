# musidecar: `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PY := .venv/bin/python
CC ?= gcc
C_FILES := $(shell find ffi protocols tests bench musidecar/bench -name '*.c' 2>/dev/null | sort)
CORE_FILES := $(wildcard ffi/core/*.c ffi/fabric/*.c ffi/engine/*.c ffi/gate/*.c protocols/*/*.c)
C_FLAGS := -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -I. -Iffi
PYTEST := $(PY) -m pytest

.PHONY: help setup build demo test test-all vm vm-sanitize sim fuzz soak suite bench instructions lint asan ubsan tsan sanitize clean

help: ## This list
	@awk -F':.*## ' '/^[a-z -]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## .venv with everything in it; Debian packages where they are missing
	@tools/setup

.venv/bin/musidecar:
	@tools/setup

build: .venv/bin/musidecar ## Compile the C code again, where it changed
	@mkdir -p build
	@flock build/.lock $(PY) setup.py -q build_ext --inplace

demo: build ## See a node die, come back, and nothing get lost
	@.venv/bin/musidecar demo

test: build ## Unit, simulator, fault and virtual machine tests (under 30 minutes on 2 cores)
	$(PYTEST) -m "not slow"

vm: build ## The tests that need RDMA, on soft-RoCE in a small virtual machine
	@tools/setup --vm
	MUSIDECAR_VM=required $(PYTEST) tests/vm -m "not slow"

test-all: build vm-sanitized ## And the slow ones
	$(PYTEST) tests

SEEDS ?= 2000
sim: ## The simulator, SEEDS=n seeds on all processors; stops at the first violation
	$(PY) -m musidecar.sim --seeds $(SEEDS)

fuzz: build ## Every parser with libFuzzer: MINUTES=5 for all together, or EXECUTIONS= of each; PARSER=
	@tools/setup --fuzz
	@$(PY) tests/fuzz/run.py run --minutes $(or $(MINUTES),5) $(if $(EXECUTIONS),--executions $(EXECUTIONS)) $(if $(PARSER),--parser $(PARSER))

SOAK := $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(FAILOVERS),--failovers $(FAILOVERS))
soak: build ## Real clusters killed, stopped, cut, started again under load: MINUTES=, ROUNDS= or FAILOVERS=; SEED=; CLUSTER=one
	$(PY) -m tests.fault.soak $(or $(strip $(SOAK)),--minutes 5) $(if $(SEED),--seed $(SEED)) $(if $(CLUSTER),--one-cluster)

suite: build ## Redis's own test suite through a leader and a follower: UNIT=unit/multi for one of it
	$(PY) -m tests.suites.redis_suite $(if $(UNIT),--unit $(UNIT))

bench: build ## Beside redis-server, HAProxy, twemproxy and WAIT, as ratios
	@tools/setup --bench
	.venv/bin/musidecar bench proxy
	.venv/bin/musidecar bench proxy --backend memcached
	.venv/bin/musidecar bench proxy --backend liquibook

# Few enough that the ring holds them; the difference leaves out everything that is done once.
COMMITS := 1000 11000
instructions: ## What a commit costs in instructions, counted by valgrind, over shm and over verbs without a device's share
	@mkdir -p build/instructions
	@$(CC) $(C_FLAGS) -O3 -flto=auto -fvisibility=hidden -o build/instructions/commit bench/commit.c \
	    $(wildcard ffi/core/*.c ffi/fabric/*.c) -lpthread -ldl
	@for fabric in shm verbs; do \
	    for commits in $(COMMITS); do \
	        valgrind --tool=callgrind --callgrind-out-file=/dev/null build/instructions/commit $$fabric $$commits 2>&1 | \
	            awk '/Collected/ { print $$4 }'; \
	    done | awk -v name=$$fabric '{ all[NR] = $$1 } END { printf "%s: %.0f instructions\n", name, (all[2] - all[1]) / 10000 }'; \
	done

lint: build ## ruff, mypy, and the compiler with every warning an error
	.venv/bin/ruff check .
	.venv/bin/mypy
	@printf '%s\n' $(C_FILES) | xargs -P 2 -I{} $(CC) $(C_FLAGS) -O2 -c {} -o /dev/null
	@echo "C: $(words $(C_FILES)) files without a warning"

# The native drivers (tests/native: replicas as threads over one mapping; tests/sim: the simulator), built with a
# sanitizer and run, and the parsers' harnesses (tests/fuzz) over their corpus. TSan sees nothing across processes, so
# threads it is; the harnesses have one only, and the simulator, which switches stacks.
NATIVE := $(wildcard tests/native/*.c)
NATIVE_asan := tests/sim/simulate.c
NATIVE_ubsan := tests/sim/simulate.c
PARTS_simulate := $(filter-out tests/sim/simulate.c,$(wildcard tests/sim/*.c))
SANITIZE_asan := -fsanitize=address
SANITIZE_ubsan := -fsanitize=undefined
SANITIZE_tsan := -fsanitize=thread -Wno-tsan
# What a driver is run with.
ARGUMENTS_simulate := --seeds 100
DEFINES_simulate := -DMUSIDECAR_SIMULATED

asan ubsan tsan: ## Run the native test drivers under this sanitizer
	@[ -n "$(NATIVE)" ] || { echo "$@: nothing in tests/native"; exit 1; }
	@mkdir -p build/$@
	@$(foreach file,$(NATIVE) $(NATIVE_$@),$(MAKE) --no-print-directory sanitized KIND=$@ FILE=$(file) &&) true
	@$(if $(filter-out tsan,$@),$(PY) tests/fuzz/run.py replay --sanitize $(patsubst -fsanitize=%,%,$(SANITIZE_$@)))

.PHONY: sanitized
sanitized:
	@echo "$(KIND): $(FILE) $(ARGUMENTS_$(basename $(notdir $(FILE))))"
	@$(CC) $(C_FLAGS) -O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all $(SANITIZE_$(KIND)) \
	    $(DEFINES_$(basename $(notdir $(FILE)))) -o build/$(KIND)/$(basename $(notdir $(FILE))) $(FILE) $(PARTS_$(basename $(notdir $(FILE)))) $(CORE_FILES) -lpthread -lm
	@build/$(KIND)/$(basename $(notdir $(FILE))) $(ARGUMENTS_$(basename $(notdir $(FILE))))

sanitize: asan ubsan tsan ## All three

# For what needs a device, and so runs in the virtual machine: the whole extension, and a driver with threads.
SANITIZED := build/sanitized
SANITIZE_address := -fsanitize=address,undefined
SANITIZE_thread := $(SANITIZE_tsan)
.PHONY: vm-sanitized
vm-sanitized:
	@mkdir -p $(SANITIZED)
	@flags="-O1 -fno-omit-frame-pointer -fno-sanitize-recover=all $(SANITIZE_address)"; \
	    CFLAGS="$$flags" LDFLAGS="$$flags" $(PY) setup.py -q build_ext --build-lib $(SANITIZED) --build-temp $(SANITIZED)/temp
	@$(foreach kind,address thread,$(CC) $(C_FLAGS) -O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all $(SANITIZE_$(kind)) \
	    -o $(SANITIZED)/verbs_links-$(kind) tests/vm/verbs_links.c $(wildcard ffi/fabric/verbs*.c) -lpthread -ldl &&) true

vm-sanitize: build vm-sanitized ## The verbs fabric under sanitizers, on soft-RoCE in the virtual machine
	@tools/setup --vm
	MUSIDECAR_VM=required $(PYTEST) tests/vm/guest/test_sanitized.py

clean: ## Everything that was built, and .venv
	rm -rf build dist .venv *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis ffi/*.so
