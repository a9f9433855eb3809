# Every target does its own set-up; caches live in $(CACHE), outside the clone, keyed by content.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export LMTRAIN_CACHE ?= $(HOME)/.cache/lm-training-operator
PYTHON := .venv/bin/python
READY := .venv/.ready
# A process for each core and one more, since many tests wait; tests/conftest.py says which stay together.
SIDE_BY_SIDE := --numprocesses auto --no-loadscope-reorder
# Where none waits, one more would only import once more.
ON_EACH_CORE := --numprocesses logical --no-loadscope-reorder

##@ Use it
demo: $(READY) ## Real cluster, real training, a killed pod, the recovery: all of it (first time about 25 minutes)
	@$(PYTHON) -m devcluster.demo

cluster-up: $(READY) ## Start a real single-node Kubernetes on this machine
	@$(PYTHON) -m devcluster up

cluster-down: $(READY) ## Stop it and leave nothing behind but caches
	@$(PYTHON) -m devcluster down

##@ Test it
test: $(READY) ## All tests (warm: about 30 minutes on two cores)
	@$(PYTHON) -m devcluster build >/dev/null
	@$(PYTHON) -m devcluster up >/dev/null
	@$(PYTHON) -m devcluster image build all >/dev/null
	@$(PYTHON) -m pytest $(SIDE_BY_SIDE) tests/e2e tests/trainer tests/api tests/simulation tests/unit

test-unit: $(READY) ## Pure logic, seconds
	@$(PYTHON) -m pytest -q $(ON_EACH_CORE) tests/unit

test-sim: $(READY) ## The operator in 2,000 simulated worlds, a minute or two
	@$(PYTHON) -m pytest -q $(ON_EACH_CORE) tests/simulation

test-api: $(READY) ## Against a real API server
	@$(PYTHON) -m devcluster build >/dev/null
	@$(PYTHON) -m pytest -q tests/api

test-trainer: $(READY) ## Real torch on the CPU, several processes
	@$(PYTHON) -m pytest -q $(SIDE_BY_SIDE) tests/trainer

test-e2e: $(READY) ## On the real cluster, with pods
	@$(PYTHON) -m devcluster build >/dev/null
	@$(PYTHON) -m pytest -q tests/e2e

test-queues: $(READY) ## With the real Kueue, which is built for it once (5 minutes)
	@$(PYTHON) -m pytest -q tests/queues

soak: $(READY) ## 50,000 simulated worlds; 5,000 drawn jobs; a training under 200 kills (SCHEDULES=n, SPECS=n, KILLS=n)
	@$(PYTHON) -m tests.simulation --schedules $(or $(SCHEDULES),50000)
	@$(PYTHON) -m tests.fuzz --specs $(or $(SPECS),5000)
	@$(PYTHON) -m tests.soak --kills $(or $(KILLS),200)

bench: $(READY) ## Speed, memory, and what faults do to us and to others, side by side in one run
	@$(PYTHON) -m bench.train_speed
	@$(PYTHON) -m bench.guard_cost
	@$(PYTHON) -m bench.false_alarms
	@$(PYTHON) -m bench.checkpoint
	@$(PYTHON) -m bench.injections
	@$(PYTHON) -m bench.recovery
	@$(PYTHON) -m bench.plugin
	@$(PYTHON) -m bench.scrape

bench-operator: $(READY) ## A thousand jobs on simulated nodes (root, a quarter of an hour; ARGS='--jobs 50')
	@$(PYTHON) -m bench.operator $(ARGS)

##@ Change it
lint: $(READY) ## ruff, mypy --strict, import-linter, generated files up to date
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@$(PYTHON) -m lmtraining_crdgen --check
	@$(PYTHON) -m lmtraining_monitoring --check

crds: $(READY) ## Generate CRDs and the field reference from the models
	@$(PYTHON) -m lmtraining_crdgen

monitoring: $(READY) ## Generate alerts and boards, for the chart and the docs, from their code
	@$(PYTHON) -m lmtraining_monitoring

docs: crds ## The same: the generated pages of docs/reference

docs-site: $(READY) ## The pages of docs/ as a site, into build/site; every link checked; needs no network
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
	@echo "build/site/index.html; with search: $(PYTHON) -m http.server --bind 127.0.0.1 --directory build/site"

screenshots: $(READY) ## The pictures of README and docs, of a run on the real cluster (some minutes)
	@$(PYTHON) -m tests.screenshots

images: $(READY) ## Build the operator and trainer images and push them to the cluster's registry
	@$(PYTHON) -m devcluster image build all

constraints: ## Pin the newest versions that pyproject.toml allows
	@uv pip compile -q --upgrade --no-header --no-annotate --no-emit-index-url --extra dev \
	  --python-version 3.11 pyproject.toml -o constraints/python.txt

clean: ## Stop the cluster and give back every byte: images, binaries, the environment
	@if [ -x $(PYTHON) ]; then $(PYTHON) -m devcluster clean; fi
	@rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

help: ## This page
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z0-9-]+:.*##/ {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints/python.txt bootstrap.sh
	@./bootstrap.sh

.PHONY: demo cluster-up cluster-down test test-unit test-sim test-api test-trainer test-e2e test-queues soak bench bench-operator lint crds docs docs-site monitoring screenshots \
  images constraints clean help
