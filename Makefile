# Needs Python >= 3.11 and make; everything else is fetched into .venv, pinned by hash.
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null)
BIN := .venv/bin

.PHONY: help up test test-slow soak lint format lock bench bench-import clean e2e e2e-long load lab

help: ## what can be made
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

up: .venv/.service ## a replicated catalogue on 127.0.0.1:8000, Ctrl-C ends it
	@$(BIN)/atelier up

# CACHE=off: services answer nothing from memory, in the tests and in the lab; everything has to hold both ways.
CACHE ?= on
ifeq ($(CACHE),off)
test test-slow soak e2e e2e-long: export TEST_CACHE_BYTES := 0
LAB_SETTINGS := --setting=ATELIER_CACHE_BYTES=0
else ifneq ($(CACHE),on)
$(error CACHE is on or off, not '$(CACHE)')
endif

test: .venv/.dev ## everything that is quick enough for every change
	@$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/.dev ## the tests that take longer
	@$(BIN)/python -m pytest -m slow

SOAK ?= 20
soak: .venv/.dev ## the concurrency and fault tests, SOAK=20 times in a row
	@$(BIN)/python -m pytest -x -m "soak and not slow" --rounds $(SOAK)

lint: .venv/.dev ## style, strict types, import rules, nothing generated is stale
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/stale.py

format: .venv/.dev ## puts the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Needs a container engine with Compose v2. On a machine without one: ../shared/tools/docker-host, where it exists.
e2e: .venv/.dev ## the deployment in containers, built and driven through its proxy
	@ATELIER_E2E=1 $(BIN)/python -m pytest -m "not slow" tests/e2e

e2e-long: .venv/.dev ## the same and more: every fault in every mode, with the figures of docs/operations.md
	@ATELIER_E2E=1 $(BIN)/python -m pytest -s tests/e2e

LOAD_URL ?= http://127.0.0.1:8000
LOAD_WEB_HOST ?= 127.0.0.1
load: .venv/.dev ## Locust's web page, against the service that `make up` started
	@export LOADTEST_API_KEY="$${LOADTEST_API_KEY:-$$(cat .atelier/api-key)}"; \
	  $(BIN)/locust -f loadtest/locustfile.py --host $(LOAD_URL) --web-host $(LOAD_WEB_HOST)

lab: .venv/.dev ## load, faults and a verdict: every scenario, every sabotage, on a cluster of its own
	@$(BIN)/python -m loadtest all $(LAB_SETTINGS)

bench: .venv/.dev ## measures against pgbench on this machine, in ratios; needs wrk and nginx; ARGS="reads --seconds 4"
	@$(BIN)/python -m bench $(ARGS)

bench-import: .venv/.dev ## measures an import against plain copying, ARGS="--products 100000"
	@$(BIN)/python -m bench import $(ARGS)

# Names, versions and hashes only. Needs uv; `make up` and `make test` do not.
LOCK := uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11
lock: ## resolves the dependencies anew
	$(LOCK) --upgrade --extra embedded --extra load --group pyproject.toml:dev pyproject.toml -o requirements/dev.txt
	$(LOCK) --extra embedded --group pyproject.toml:build -c requirements/dev.txt pyproject.toml -o requirements/service.txt
	@$(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['load'], sep='\n')" \
	  | $(LOCK) -c requirements/dev.txt - -o requirements/load.txt
	$(PYTHON) tools/stale.py stamp

clean: ## removes .venv and caches; data in .atelier stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "atelier needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@echo "making .venv"
ifdef UV
	@$(UV) venv --quiet --clear --python $(PYTHON) .venv
else
	@$(PYTHON) -m venv --clear .venv
endif
	@touch $@

# service and dev install into the same folder; dev holds all of service, so where it is, it is what is kept up to date.
ifeq ($(wildcard .venv/.dev),)
.venv/.service: .venv/.created requirements/service.txt
	@echo "installing what the service needs"
	@$(call install,requirements/service.txt)
	@touch $@
else
.venv/.service: .venv/.dev
	@touch $@
endif

.venv/.dev: .venv/.created requirements/dev.txt
	@echo "installing what development needs"
	@$(call install,requirements/dev.txt)
	@touch $@ .venv/.service

ifdef UV
install = $(UV) pip install --quiet --python $(BIN)/python --require-hashes -r $(1) && \
  $(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
else
install = $(BIN)/pip --disable-pip-version-check install --quiet --require-hashes -r $(1) && \
  $(BIN)/pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation -e .
endif
