# SPDX-License-Identifier: Apache-2.0
# Two commands do all the set-up there is: `make demo` and `make test`. Neither asks anything, both may be
# repeated, and only Debian packages (as root) are written outside this directory.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Servers and mkfs live in the sbin directories, which a user's PATH often lacks.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
export XDG_CACHE_HOME := $(CURDIR)/.cache
export PIP_CACHE_DIR := $(CURDIR)/.cache/pip
export TMPDIR := $(CURDIR)/.cache/tmp
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_USER := 0
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

# Two cores are what this is meant for; files go to workers whole, so that each server is started once, and in the
# order of tests/conftest.py.
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder
EXTRAS := parallel,blake3,s3,swift,gridfs,cinder,vmware,api,client,postgresql,mysql,notifications
VERSIONS := 3.10 3.11 3.12 3.13
# What depends on the interpreter shows in one set-up of the suite as well as in all; these are left to `full`, as are the
# tests of the suite itself.
CONFORMANCE := tests/functional/test_filesystem_conformance.py::TestDefaults \
	--deselect tests/unit/test_conformance_memory.py::TestMemoryStoreInOrder \
	$(addprefix --ignore=tests/unit/test_,$(addsuffix .py,\
		example_driver minimal_driver conformance_live conformance_rejects))
BIN := .venv-ci/bin
heading = @printf '\n== %s\n' '$(1)'

.PHONY: help demo test packages environment lint types imports docs resolve interpreters servers full clean

help:
	@echo 'make demo    install into .venv and run the main job on real disk images'
	@echo 'make test    everything CI runs: lint types imports docs resolve interpreters full (each is a target)'
	@echo 'make clean   remove every environment, cache and build'

demo:
	@.ci/packages demo
	@.ci/venv .venv "$$(.ci/pythons first 3.11 3.12 3.13 3.10)" api
	@.venv/bin/storelib demo </dev/null

test: packages environment lint types imports docs resolve interpreters full

packages:
	$(call heading,Debian packages)
	@.ci/packages test

environment:
	@.ci/venv .venv-ci "$$(.ci/pythons first 3.11 3.12 3.13 3.10)" test,$(EXTRAS),dev,docs
	@.ci/ceph-bindings $(BIN)/python

lint: environment
	$(call heading,ruff)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: environment
	$(call heading,mypy)
	@$(BIN)/mypy

imports: environment
	$(call heading,import-linter)
	@$(BIN)/lint-imports

docs: environment
	$(call heading,documentation (warnings are errors))
	@flock .cache/docs.lock $(BIN)/python -m sphinx -E -W --keep-going --quiet -b html docs docs/_build/html
	@echo 'docs/_build/html/index.html'

resolve: environment
	$(call heading,all extras beside glance_store and obstore resolve into one environment)
	@flock .cache/venv.lock $(BIN)/python -m pip install -qq --dry-run --ignore-installed \
		'.[all]' 'glance_store==5.7.0' obstore
	@echo 'resolved'

# The version of .venv-ci is left to `full`, which runs these tests too.
interpreters: environment
	$(call heading,unit tests and one file store under every interpreter of $(VERSIONS) found here)
	@.ci/pythons all $(VERSIONS) | while read -r version python; do \
		[[ "$$($(BIN)/python -V)" != "Python $$version."* ]] || continue; \
		echo "-- Python $$version: $$python"; \
		.ci/venv ".venv-$$version" "$$python" test,$(EXTRAS); \
		".venv-$$version/bin/python" $(PYTEST) -q tests/unit $(CONFORMANCE) </dev/null; \
	done

servers: environment
	$(call heading,servers that come from Python packages or are built)
	@cd tests/functional && for server in localstack openstack cinder mongod clients vcenter; do \
		$(CURDIR)/$(BIN)/python -m servers.$$server </dev/null; \
	done

full: environment servers
	$(call heading,all tests)
	@echo "-- $$($(BIN)/python -V): $$($(BIN)/python -c 'import sys; print(sys._base_executable)')"
	@$(BIN)/python $(PYTEST) -q tests/unit tests/functional </dev/null

clean:
	rm -rf .venv .venv-* .cache .demo .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	rm -rf docs/_build build *.egg-info
