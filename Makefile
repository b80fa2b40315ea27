# musidecar: `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python

.PHONY: help setup build
help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

setup: .venv/.ready ## .venv with everything in it, Debian packages where they are missing

.venv/.ready: tools/setup pyproject.toml
	@tools/setup
	@touch $@

build: .venv/.ready ## Compile the C code again into the installed package
	@mkdir -p build
	@flock build/.lock $(PY) setup.py -q build_ext --inplace
