# Every target sets up what it needs, and does nothing for what is already there.

PYTEST_WORKERS ?= 2
# A soak explores: another seed each time, printed in pytest's header. It says how far it is.
SEED ?= $(shell date +%s)
# Of simulated worlds: one after the other from the seed on, until so many minutes are over.
MINUTES ?= 10
python := .venv/bin/python
ready := .venv/.freshscore-ready
servers := .servers/.freshscore-ready

.PHONY: help environment servers demo test check lint types bench soak

help:
	@echo 'make demo   generate, train, replay, and print what the cache saves'
	@echo 'make check  lint and the embedded tests: no root, no servers'
	@echo 'make test   lint and all tests, the wheel and real Kafka and Redis servers included'
	@echo 'make lint   ruff and mypy --strict'
	@echo 'make bench  the table of figures, also in build/bench.json'
	@echo 'make soak   long random runs: SEED=N, MINUTES=N of simulated worlds'

environment: $(ready)

$(ready): pyproject.toml constraints.txt .ci/environment
	@.ci/environment
	@touch $@

servers: $(servers)

$(servers): tests/servers/kafka/pom.xml .ci/servers
	@.ci/servers
	@touch $@

demo: environment
	@$(python) -m freshscore demo

# The wheel's tests are timed by pip, so they run beside nothing else.
test: lint servers
	$(python) -m pytest -n $(PYTEST_WORKERS) -m 'not soak and not bench and not wheel'
	$(python) -m pytest -m wheel

check: lint
	$(python) -m pytest -n $(PYTEST_WORKERS) \
		-m 'not soak and not bench and not wheel and not servers'

lint: environment types
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	cd .types && MYPYPATH=. ../$(python) -m mypy --config-file ../pyproject.toml \
		--cache-dir ../.mypy_cache/rooms -p freshscore -p tests

types:
	@.ci/types

bench: environment servers
	$(python) tests/bench/run.py

soak: environment servers
	$(python) -m pytest -m soak -s --seed $(SEED) --minutes $(MINUTES)
