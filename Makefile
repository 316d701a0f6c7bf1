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
export PIP_RETRIES := 10
export PIP_TIMEOUT := 60
export PIP_USER := 0
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
# Each process of the tests would compile everything again: without this, half of their time.
unexport PYTHONDONTWRITEBYTECODE

# Two cores are what this is meant for, and three processes: functional tests wait part of their time, and with four of them
# at a time loaded machines come near to time limits. Files go to
# them whole, so that each server is started once, and in the order of tests/conftest.py.
THREE := -n 3 --dist loadfile --no-loadscope-reorder
EXTRAS := parallel,blake3,castellan,zstd,s3,swift,gridfs,cinder,brick,vmware,api,client,postgresql,mysql,notifications,node
VERSIONS := 3.10 3.11 3.12 3.13
# Left to `full` under the other interpreters, since none of these can come out otherwise there: the tests of the suite
# itself and of conftest.py (one set-up of the suite shows what depends on the interpreter as well as all do), of the
# benchmarks and of who imports whom, what qemu-img does, and what is about SQL: random lists, whose like is in
# db_lists.py, every transaction whose end is not heard of, and what is counted, whose ceilings are those of one.
ELSEWHERE := tests/unit tests/functional/test_filesystem_conformance.py::TestDefaults \
	--deselect tests/unit/test_conformance_memory.py::TestMemoryStoreInOrder \
	--deselect tests/unit/api/test_import_plugins.py::TestConversion \
	--deselect tests/unit/api/test_db_listing.py::TestLists \
	$(addprefix --ignore=tests/unit/,$(addsuffix .py,api/test_lost_commits api/test_service_lost_commits api/test_db_list_work \
		$(addprefix test_,example_driver minimal_driver conformance_live conformance_rejects conformance_plugin counted_work \
			no_skips run_again benchmarks structure)))
BIN := .venv-ci/bin
heading = @printf '\n== %s\n' '$(1)'

.PHONY: help demo test packages environment lint types imports docs resolve interpreters servers full test-clients test-glance \
	bench bench-full clean

help:
	@echo 'make demo    install into .venv and run the main job on real disk images'
	@echo 'make test    everything CI runs: lint types imports docs resolve interpreters full (each is a target)'
	@echo 'make test-clients    the suites of tempest and of the clients, whole: half an hour'
	@echo 'make test-glance     the tests of Glance and glance_store, on storelib: a quarter of an hour'
	@echo 'make bench           all benchmarks, half an hour; bench-full: large images and long curves, hours'
	@echo 'make clean   remove every environment, cache and build'

demo:
	@.ci/packages demo
	@.ci/venv .venv "$$(.ci/pythons first 3.11 3.12 3.13 3.10)" api
	@.venv/bin/storelib demo </dev/null

# The last two side by side: much of what each does is to wait. Not as jobs of the shell, which SIGINT does not reach.
test: packages environment lint types imports docs resolve
	@printf '%s\n' interpreters full | xargs --max-procs=2 --max-args=1 $(MAKE)

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

# Asked again when something here changed, and each day, since what others publish changes too.
resolve: environment
	$(call heading,all extras beside glance_store and obstore resolve into one environment)
	@stamp=$$({ cat Makefile setup.cfg pyproject.toml storelib/_version.py; $(BIN)/python -VV; date +%F; } | sha256sum); \
	if [[ $$stamp != "$$(cat .cache/resolved 2>/dev/null)" ]]; then \
		flock .cache/venv.lock $(BIN)/python -m pip install -qq --dry-run --ignore-installed \
			'.[all]' 'glance_store==5.7.0' obstore; \
		echo "$$stamp" >.cache/resolved; \
	fi
	@echo 'resolved'

# The version of .venv-ci is left to `full`, which runs these tests too.
interpreters: environment
	$(call heading,unit tests and one file store under every interpreter of $(VERSIONS) found here)
	@.ci/interpreters '$(VERSIONS)' test,$(EXTRAS),dev $(ELSEWHERE)

servers: environment
	$(call heading,servers that come from Python packages or are built)
	@cd tests/functional && for server in localstack openstack cinder mongod clients glance vcenter; do \
		$(CURDIR)/$(BIN)/python -m servers.$$server </dev/null; \
	done

full: environment servers
	$(call heading,all tests)
	@echo "-- $$($(BIN)/python -V): $$($(BIN)/python -c 'import sys; print(sys._base_executable)')"
	@.ci/tests $(BIN)/python .cache/tests $(THREE) tests/unit tests/functional

# Some of these suites look only at times and at what others do on the same server: one after the other.
test-clients: packages environment servers
	$(call heading,suites and services that others wrote for the image API)
	@$(BIN)/python -m pytest -q --whole-suites tests/functional/test_api_{services,suites}.py </dev/null

# Each test that fails on storelib is run with glance_store, too: what fails with both is no matter of ours.
test-glance: packages environment servers
	$(call heading,the tests of Glance and of glance_store on storelib)
	@$(BIN)/python -m pytest -q --whole-suites tests/functional/test_glance.py </dev/null

# What users would pick instead, and what draws the pictures. Measured beside storelib in one environment.
# boto3 again, since s3fs wants a botocore that is not the newest.
PEERS := 'glance_store[s3,swift,cinder,vmware]==5.7.0' obstore matplotlib s3fs boto3

bench bench-full: packages servers
	$(call heading,benchmarks)
	@.ci/packages bench
	@.ci/venv .venv-bench "$$(.ci/pythons first 3.11 3.12 3.13 3.10)" test,$(EXTRAS)
	@.ci/ceph-bindings .venv-bench/bin/python
	@flock .cache/venv.lock .venv-bench/bin/python -m pip install -qq $(PEERS)
	@.venv-bench/bin/python -W ignore benchmarks/run.py $(if $(findstring full,$@),--full) $(BENCH)

clean:
	rm -rf .venv .venv-* .cache .demo .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	rm -rf docs/_build build *.egg-info
