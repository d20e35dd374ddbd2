# Each target sets up what it needs at its first use: the virtual environment from the hashed lock files, and PostgreSQL
# with wal2json (for the tests) from Debian's packages (as root; otherwise one line says what to install).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

BIN := .venv/bin
PIP := $(BIN)/pip --quiet --disable-pip-version-check --no-input
# Stamps: if a lock file is newer than its stamp, it is installed again.
RUNTIME := .venv/runtime.stamp
DEV := .venv/dev.stamp

DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
# Three processes on two cores, because tests mostly wait for servers. `-n 0` in TEST_ARGS runs them in one process.
PYTEST := $(BIN)/pytest -n 3 --dist worksteal
# Some tests take longer than the ten minutes after which a run counts as hanging inside libpq.
LONG := -o faulthandler_timeout=1300

.PHONY: help
help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: demo
demo: $(RUNTIME) $(if $(findstring --envoy,$(DEMO_ARGS))$(findstring --relays,$(DEMO_ARGS)),$(DEV)) any-postgres ## Show the server at work on a temporary database; DEMO_ARGS="--seconds 20 --plain --envoy --relays 2"
	@$(BIN)/pads-cdc demo $(DEMO_ARGS)

.PHONY: test
test: $(DEV) postgres replicas observers go ## Run the tests; TEST_ARGS="-k gate -x"
	$(PYTEST) -m "not soak" $(TEST_ARGS)

.PHONY: test-all
test-all: $(DEV) postgres replicas observers go ## Run all tests, with both plugins, those that take minutes included
	$(PYTEST) $(LONG) --decode-with both $(TEST_ARGS)

.PHONY: test-matrix
test-matrix: $(DEV) postgres replicas observers go ## Run the tests on PostgreSQL 15, 17 and 18
	for version in 15 17 18; do \
	  programs=$$(scripts/fetch-postgres $$version); \
	  PADS_PG_BIN=$$programs $(PYTEST) -m "not soak" $(TEST_ARGS); \
	done

.PHONY: bounds
bounds: $(DEV) postgres replicas ## Measure how much memory the server takes at its bounds, for docs/operate.md
	$(BIN)/pytest -n 0 $(LONG) -m soak tests/e2e/test_bounds.py tests/server/test_descriptors.py tests/server/observe/test_log_writer.py

MUTANTS ?=
.PHONY: mutants
mutants: $(DEV) ## Change the pure modules of cdc/ in small ways, and list the changes that no test notices; MUTANTS="'cdc.postgres.gate*'"
	@$(PIP) install --require-hashes -r requirements-mutants.txt
	nice $(BIN)/mutmut run $(MUTANTS)
	$(BIN)/mutmut results | grep -v 'not checked' || true
	scripts/mutation-score

SECONDS ?= 3600
SOAK_ARGS ?=
.PHONY: soak
soak: $(DEV) postgres ## Run writers, faults and clients against each other; SECONDS=3600, SOAK_ARGS="--seed 1"
	$(BIN)/python -m tests.soak --seconds $(SECONDS) $(SOAK_ARGS)

.PHONY: bench
bench: $(DEV) postgres ## Measure pads-cdc beside the alternatives, in minutes: BENCH_ARGS="ripple start" measures only these
	$(BIN)/python -m bench --size quick $(BENCH_ARGS)

.PHONY: bench-full
bench-full: $(DEV) postgres ## Measure for the record (docs/performance.md): an hour or more on a quiet machine
	$(BIN)/python -m bench --size full
	$(BIN)/python -m bench.document

OLD ?= HEAD~1
NEW ?= HEAD
.PHONY: bench-compare
bench-compare: $(DEV) postgres ## Measure two commits in turns: OLD=v1.0 NEW=HEAD BENCH_ARGS="latency --rounds 5"
	$(BIN)/python -m bench.compare $(OLD) $(NEW) $(BENCH_ARGS)

.PHONY: picture
picture: $(DEV) postgres ## Draw docs/demo.svg and docs/demo-envoy.svg from runs of the demo
	$(BIN)/python -m tests.picture docs/demo.svg
	$(BIN)/python -m tests.picture docs/demo-envoy.svg --envoy

.PHONY: check
check: lint types check-proto proto-lint sqlc ## Check everything that needs no database

.PHONY: lint
lint: $(DEV) ## Check format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

.PHONY: types
types: $(DEV) ## Check the types
	$(BIN)/mypy

.PHONY: sqlc
sqlc: $(DEV) ## Check the mappings' queries against their schemas
	cd sql && ../$(BIN)/sqlc compile

.PHONY: proto
proto: $(DEV) ## Generate the stubs in client/pads_cdc_client/pb/ from proto/
	scripts/generate-stubs client

.PHONY: check-proto
check-proto: $(DEV) ## Fail if the stubs are stale
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; scripts/generate-stubs "$$fresh"; \
	diff -r --exclude=__init__.py --exclude=__pycache__ "$$fresh/pads_cdc_client/pb" client/pads_cdc_client/pb || \
	{ echo "the stubs in client/pads_cdc_client/pb/ are stale: make proto" >&2; exit 1; }

.PHONY: go
go: ## Build and test the Go clients in examples/go; PADS_GO=modules or PADS_GO=debian selects the libraries
	@scripts/build-go >/dev/null

.PHONY: go-stubs
go-stubs: $(DEV) ## Generate the Go stubs in examples/go/gen from proto/; needs Go with its modules
	scripts/generate-go-stubs

PROTO_BASELINE := tests/fixtures/proto-baseline.binpb
.PHONY: proto-lint
proto-lint: $(DEV) ## Check the style of proto/, and that no published message or method has changed
	$(BIN)/buf lint
	$(BIN)/buf breaking --against $(PROTO_BASELINE)

.PHONY: proto-baseline
proto-baseline: $(DEV) ## Record proto/ as published, at a release
	$(BIN)/buf build --exclude-source-info -o $(PROTO_BASELINE)

.PHONY: lock
lock: $(DEV) ## Write the lock files from pyproject.toml; LOCK_ARGS=--upgrade takes newer versions
	scripts/lock $(LOCK_ARGS)

.PHONY: clean
clean: ## Remove what make has made: the virtual environment, caches, fetched servers
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: observers
observers: # a Prometheus and a browser, for the tests of metrics and status page
	@scripts/fetch-prometheus >/dev/null
	@scripts/install-chromium

.PHONY: postgres any-postgres
postgres:
	@scripts/install-postgres

any-postgres:
	@scripts/install-postgres any

# For the tests on standbys and through a pooler, so that their timeouts do not include a slow mirror. If a program is still
# missing after this, the tests that need it fetch it, and fail if they cannot. Only tests on PostgreSQL 18, which a mirror
# may not have, are skipped instead.
.PHONY: replicas
replicas:
	@for version in 17 18; do scripts/fetch-postgres $$version >/dev/null || true; done
	@scripts/fetch-pgbouncer >/dev/null || true
	@scripts/fetch-pgbouncer replication >/dev/null || true

.venv/bin/pip:
	@echo "making .venv (half a minute, once)"
	@scripts/make-venv

$(RUNTIME): requirements.txt requirements-build.txt pyproject.toml client/pyproject.toml | .venv/bin/pip
	@$(PIP) install --require-hashes -r requirements.txt -r requirements-build.txt
	@$(PIP) install --no-deps --no-build-isolation --editable client --editable .
	@touch $@

$(DEV): requirements-dev.txt $(RUNTIME)
	@$(PIP) install --require-hashes -r requirements-dev.txt
	@touch $@
