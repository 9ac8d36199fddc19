# One entry point for people and CI; `make help` lists what there is.
# CLUSTER=local (default: a real Kubernetes on this machine), kind (Docker), or current (your kubectl context).
CLUSTER ?= local
export CLUSTER

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(VENV)/bin/pip --quiet --disable-pip-version-check
RUN_READY := $(VENV)/.run
CLI_READY := $(VENV)/.cli
DEV_READY := $(VENV)/.dev

.PHONY: help
help: ## Lists the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'
	@echo "  CLUSTER=local|kind|current chooses the cluster of up, down, demo, test and install (now: $(CLUSTER))"

# Targets share the machine and each other's files.
.NOTPARALLEL:

# --- what a fresh machine needs --------------------------------------------------------------------------------------

.PHONY: fit system
fit:
	@local/fit

system:
	@local/bootstrap

$(VENV)/bin/python: | system
	@python3 -m venv $(VENV)

$(RUN_READY): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "==> Python packages of the pipeline (PyTorch, TorchServe, fairlearn, ONNX Runtime, a Java runtime)"
	@$(PIP) install -c constraints.txt -e '.[run]'
	@touch $@

$(CLI_READY): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "==> Python packages of the plugin and the demo"
	@$(PIP) install -c constraints.txt -e '.[cli]' s3fs
	@touch $@

$(DEV_READY): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "==> Python packages of development (PyTorch, KServe SDK, linters, …)"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@ $(CLI_READY) $(RUN_READY)

.PHONY: venv
venv: $(DEV_READY) ## Makes .venv with everything development needs

# --- without a cluster -----------------------------------------------------------------------------------------------

.PHONY: run
run: system $(RUN_READY) ## The whole pipeline on this machine, no root and no cluster: data, four stages, one answer
	@$(PY) examples/adult-income/data.py --to .mlplatform/data/adult/adult.csv
	@$(VENV)/bin/kubectl-mlmodel run -f examples/adult-income/mlmodel.yaml --data .mlplatform/data/adult --ask

# --- the cluster -----------------------------------------------------------------------------------------------------

.PHONY: up down status images binaries
up: fit system ## Starts the cluster with its add-ons and images (local: builds them once)
	@local/up

down: ## Stops the local cluster and removes what it made (kind: deletes the kind cluster)
	@local/down

status: ## Says what runs of the local cluster
	@python3 -m local status

images: fit system ## Builds the images
	@python3 -m local images

binaries: system ## Builds or finds the Kubernetes binaries and prints their folder
	@python3 -m local binaries

.PHONY: demo install
demo: export DEMO_STARTED := $(shell date +%s)
demo: fit system $(CLI_READY) ## From nothing to a served, replaced model: the whole path, live
	@local/up
	@$(PY) -m local.demo

install: $(CLI_READY) ## Installs or upgrades the chart on the cluster
	@$(PY) -m local.demo --only install

# --- checks ----------------------------------------------------------------------------------------------------------

.PHONY: lint format
lint: $(DEV_READY) ## ruff (all rules), formatting, mypy strict, import-linter
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/mypy local benchmarks dashboards examples/adult-income
	@$(VENV)/bin/lint-imports

format: $(DEV_READY) ## Formats the code
	@$(VENV)/bin/ruff check --fix-only --quiet .
	@$(VENV)/bin/ruff format .

.PHONY: manifests
manifests: $(DEV_READY) ## Writes what is derived: the dashboards, the chart's copies of files, the kustomize files
	@$(PY) -m dashboards.build
	@helm=$$(command -v helm) || helm=$$(python3 -m local binaries)/helm; $(PY) charts/generate.py "$$helm"

.PHONY: images-list
images-list: $(DEV_READY) ## Every image that an installation pulls, for a mirror; VALUES="-f mine.yaml" as helm takes them
	@helm=$$(command -v helm) || helm=$$(python3 -m local binaries)/helm; \
	  "$$helm" template mlplatform charts/mlplatform --kube-version 1.28 --set store.existingSecret=any $(VALUES) | $(PY) charts/images.py

# Of another making where KUBEBUILDER_ASSETS names their folder (envtest), so that any machine can run these tests.
BINARIES := [ -n "$${KUBEBUILDER_ASSETS:-}" ] || python3 -m local binaries >/dev/null

.PHONY: test test-unit test-apiserver test-oldest test-e2e test-company test-nightly
test: fit test-unit test-apiserver test-e2e test-company ## All tests, fast ones first

test-unit: $(DEV_READY) ## Pure tables, golden scenarios, the chart, jobs and handlers on small data
	@$(BINARIES)
	@$(PY) -m pytest -n auto --dist loadfile tests/unit tests/golden

test-apiserver: $(DEV_READY) ## Semantics and contracts against a real kube-apiserver
	@$(BINARIES)
	@$(PY) -m pytest -n auto --dist loadfile tests/apiserver tests/contract

# Not part of `test`: the build takes some minutes, once.
test-oldest: $(DEV_READY) ## The tests against a kube-apiserver, on that of the oldest supported Kubernetes
	@$(BINARIES)
	@TEST_ASSET_KUBE_APISERVER=$$(python3 -m local upstream build kubernetes-oldest)/kube-apiserver \
	  $(PY) -m pytest -n auto --dist loadfile tests/apiserver

test-e2e: fit $(DEV_READY) ## Given/When/Then on the cluster
	@local/up
	@$(PY) -m pytest -m "not nightly and not variant" --durations=12 tests/e2e

# Another cluster than that of test-e2e, which ends for it.
test-company: $(DEV_READY) ## A model on a cluster of IPv6 alone, with a domain, authority, proxy, user ids and nodes of its own
	@local/down
	@VARIANT=ipv6 local/up
	@VARIANT=ipv6 $(PY) -m pytest -m variant --durations=12 tests/e2e
	@local/down

# Not part of `test`: they overload, upgrade and wait for minutes, and build Kueue, once.
test-nightly: fit $(DEV_READY) ## The longer scenarios: overload, upgrades under load, quotas, the real Kueue
	@local/up
	@$(PY) -m pytest -m nightly --durations=12 tests/e2e

# The short form is part of test-e2e.
.PHONY: chaos
chaos: fit $(DEV_READY) ## The operator killed 200 times, each add-on and the API server down for a minute (an hour or more)
	@CHAOS_SEEDS=250 $(PY) -m pytest -n auto tests/unit/operator/test_chaos.py
	@local/up
	@CHAOS=long $(PY) -m pytest tests/e2e/test_chaos.py

# --- measurements ----------------------------------------------------------------------------------------------------

.PHONY: calibrate
calibrate: $(DEV_READY) ## How often evidence, thresholds and peeked tests decide a rollout wrongly, simulated (minutes)
	@$(PY) -m benchmarks.calibrate

.PHONY: bench-run bench-overhead bench-optimize bench-demo bench-serving bench-operator bench-operator-scale bench-memory bench-build bench-data
bench-run: system ## From a clone to a served answer without a cluster, and what a second run takes
	@python3 -m benchmarks.run

bench-overhead: $(DEV_READY) ## The same version by `run` and by `kubectl apply`, until its archive is packaged
	@local/up
	@$(PY) -m benchmarks.overhead

bench-optimize: $(DEV_READY) ## Whether one candidate ships whatever else the machine does
	@$(PY) -m benchmarks.optimize_choice

bench-demo: demo ## `make demo`, and its table in docs/benchmarks.md
	@$(PY) -m benchmarks.demo

bench-serving: $(DEV_READY) ## Requests/s and latency of the gateway path, against TorchServe's BaseHandler
	@local/bootstrap wrk:wrk
	@local/up
	@$(PY) -m benchmarks.serving

bench-operator: $(DEV_READY) ## The operator's own share of a rollout, its memory, and writes while idle
	@local/up
	@$(PY) -m benchmarks.operator

bench-operator-scale: $(DEV_READY) ## The operator with 100, 1,000 and 10,000 quiet models on a real API server (an hour)
	@$(BINARIES)
	@PYTHONPATH=tests $(PY) -m benchmarks.operator_scale

# BEFORE=<revision> measures that beside this checkout.
bench-data: $(DEV_READY) ## What any data costs and is worth: defaults, files, the handler, texts, data larger than memory (an hour; MLPLATFORM_BENCH_GIB)
	@$(PY) -m benchmarks.data $(if $(BEFORE),--before $(BEFORE))

bench-build: $(DEV_READY) ## What the parts of the local cluster took when they were last built
	@$(PY) -m benchmarks.build

bench-memory: $(DEV_READY) ## What the idle local cluster holds in memory, by program
	@local/up
	@$(PY) -m benchmarks.memory

.PHONY: clean
clean: ## Removes what make and Python left in the checkout (caches outside stay)
	@rm -rf .demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build
