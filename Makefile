# The one entrance. `make demo` and `make test` set up everything they need.
VENV ?= .venv
PY := $(VENV)/bin/python
BITTENSOR := $(or $(LIGHTNING_BITTENSOR_VENV),.venv-bittensor)/bin/python
BITTENSOR11 := $(or $(LIGHTNING_BITTENSOR11_VENV),.venv-bittensor11)/bin/python
SETUP := LIGHTNING_VENV=$(VENV) tools/setup.sh
CODE := lightning tests examples tools bench setup.py

.PHONY: help demo test bench bench-quick bench-docs bench-scale bench-micro interop chain peer-suite build debug annotate lint types format cov sanitize tsan fuzz soak dist clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: ## start a miner and a validator on loopback and let them talk
	@$(SETUP)
	@$(PY) examples/demo.py

test: build ## the test suite
	$(PY) -m pytest

bench: build ## side by side with what users would pick instead; needs a quiet machine
	-$(PY) -m pip install -q --disable-pip-version-check --group bench
	$(PY) -m bench.compare

bench-quick: build ## the same in two minutes, for a look
	-$(PY) -m pip install -q --disable-pip-version-check --group bench
	$(PY) -m bench.compare --quick

bench-docs: ## write docs/benchmarks.md and its charts from the last run of make bench
	$(PY) -m bench.compare --tables build/compare/compare.json --docs >/dev/null

bench-scale: build ## a thousand connections: what an idle one costs, what many do to requests
	$(PY) bench/scale.py

bench-micro: build ## what an operation costs: instructions, times, memory
	$(PY) -m pip install -q --disable-pip-version-check --group bench
	$(PY) bench/micro/counts.py
	$(PY) -m pytest -q --timeout 600 --benchmark-timer time.thread_time bench/micro
	$(PY) bench/micro/memory.py

interop: build ## the tests with other QUIC stacks, and with bittensor; they fail where these are missing
	! command -v go >/dev/null || tools/quicgo.sh
	LIGHTNING_REQUIRE_INTEROP=1 $(PY) -m pytest -m interop
	tools/bittensor_env.sh
	LIGHTNING_REQUIRE_BITTENSOR=1 $(BITTENSOR) -m pytest -m bittensor -p no:unraisableexception tests/dropin
	LIGHTNING_REQUIRE_BITTENSOR=1 $(BITTENSOR11) -m pytest -m bittensor11 tests/dropin

chain: build ## the tests with substrate-interface, in an environment of their own
	LIGHTNING_VENV=$(VENV) tools/chain_env.sh
	build/chain-venv/bin/python -m pytest -q -m chain tests/chain

peer-suite: build ## the peer's own Python tests, with this package in its place
	tools/peer_suite.sh

build: ## the environment and the extensions
	@$(SETUP) dev

debug: ## the extensions with extra checks, unoptimised
	LIGHTNING_DEBUG=1 $(PY) setup.py -q build_ext --inplace --force

annotate: ## beside each .pyx an HTML page that shows where Python is called
	LIGHTNING_ANNOTATE=1 $(PY) setup.py -q build_ext --inplace --force

lint: build ## ruff and cython-lint
	$(VENV)/bin/ruff check $(CODE)
	$(VENV)/bin/ruff format --check $(CODE)
	PATH="$(abspath $(VENV))/bin:$$PATH" cython-lint lightning

types: build ## mypy and stubtest
	$(PY) -m mypy
	$(PY) -m mypy tests/typing
	MYPYPATH=. $(PY) -m mypy.stubtest --concise --mypy-config-file pyproject.toml \
		--allowlist tests/typing/stubtest-allowlist.txt \
		--ignore-unused-allowlist $$($(PY) tools/core_modules.py)

format: ## write the code as ruff would
	$(VENV)/bin/ruff check --fix $(CODE)
	$(VENV)/bin/ruff format $(CODE)

cov: build ## coverage of Python and Cython
	LIGHTNING_TRACE=1 tools/variant.sh cov bash -c '\
	    "$$PY" -m coverage run -m pytest -q --timeout 300 && "$$PY" -m coverage report'

sanitize: build ## the suite under AddressSanitizer and UndefinedBehaviorSanitizer
	tools/sanitize.sh

tsan: build ## the tests of threads under ThreadSanitizer
	tools/tsan.sh

fuzz: build ## ten minutes of one fuzz target: make fuzz TARGET=connection SECONDS=600
	nice -n 19 tools/fuzz.sh $(TARGET) $(or $(SECONDS),600)

soak: build ## the long runs: ten minutes of threads, a thousand networks
	nice -n 19 $(PY) -m pytest -m soak --timeout 1800

dist: build ## the sdist, installed and run in a clean environment
	tools/dist_check.sh

clean: ## remove what was built
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find lightning -name '*.so' -delete -o -name '*.c' -delete -o -name '*.cpp' -delete -o -name '*.html' -delete
