# The commands of the README. Both make the virtual environment when requirements.txt changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Compiling the tests anew in each of their processes takes longer than tests/unit.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test unit test-faults lint schema docs guides matrix mutants bench bench-full clean

demo: $(STAMP)
	@$(BIN)/python manage.py demo

test: $(STAMP) lint docs
	@tests/install_browsers
	@tests/install_proxies
	@tests/install_databases
	@tests/install_redis
	@tests/js/run
	@$(MAKE) --no-print-directory guides
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore-glob='tests/*/test_how_to*.py' --ignore=tests/queues

# What needs no Redis and no process, in seconds: while you work.
unit: $(STAMP)
	$(BIN)/python -m pytest -n 2 --hypothesis-profile=quick tests/unit

# Forty minutes: every fault on both web servers, alone and many at once. FAULT_TABLE=path writes the table to a file, too.
test-faults: $(STAMP)
	$(BIN)/python -m pytest tests/site tests/browser --ignore-glob='tests/*/test_how_to*.py' -p no:randomly -m faults_long

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	SECRET_KEY=$$($(BIN)/python -c 'import secrets; print(secrets.token_urlsafe(64))') DEBUG=0 ALLOWED_HOSTS=demo.example \
	  $(BIN)/python -W error manage.py check --deploy --fail-level WARNING

# The protocol's documents, from messages.py and frames.py. A test says when they are no longer current.
schema: $(STAMP)
	$(BIN)/python manage.py notifications_schema asyncapi >docs/asyncapi.json
	$(BIN)/python manage.py notifications_schema jsonschema >docs/protocol.schema.json
	$(BIN)/python manage.py notifications_schema typescript >notifications/static/notifications/protocol.d.ts

# The documentation site, in var/docs. It has an environment of its own; a link that leads nowhere is an error.
DOCS_VENV := .venv-docs
DOCS_STAMP := $(DOCS_VENV)/.installed

docs: $(DOCS_STAMP)
	$(DOCS_VENV)/bin/python -m sphinx --quiet --fail-on-warning --keep-going -c docs . var/docs

$(DOCS_STAMP): requirements.txt docs/requirements.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@touch $@

# The guides of docs/how-to and the queues, with the packages that they are about, in an environment of their own: no site
# needs them all. What Django 6 does otherwise, its own tasks, has a second one, on a Python that Django 6 runs on.
GUIDES_VENV := .venv-guides
GUIDES_STAMP := $(GUIDES_VENV)/.installed
DJANGO6_VENV := .venv-django6
DJANGO6_STAMP := $(DJANGO6_VENV)/.installed

guides: $(GUIDES_STAMP) $(DJANGO6_STAMP)
	$(GUIDES_VENV)/bin/python -m pytest -n 2 --dist loadfile tests/queues tests/site/test_how_to.py tests/browser/test_how_to_pages.py
	@if [ ! -x $(DJANGO6_VENV)/bin/python ]; then \
	  echo "Neither python3.13 nor python3.12 is here: the queues were left out on Django 6, which nox -s how_to runs them on, too"; \
	else set -x; \
	  $(DJANGO6_VENV)/bin/python -m pytest -n 2 --dist loadfile tests/queues; fi

$(GUIDES_STAMP): requirements.txt docs/how-to/requirements.txt tests/queues/requirements.txt tests/pages/package-lock.json
	$(PYTHON) -m venv $(GUIDES_VENV)
	$(GUIDES_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(GUIDES_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r docs/how-to/requirements.txt
	@if command -v npm >/dev/null; then npm ci --prefix tests/pages --no-audit --no-fund --loglevel error; \
	  else echo "npm is not here: the guides of React and HTMX will be left out (with CI set: fail)"; fi
	@touch $@

$(DJANGO6_STAMP): requirements.txt tests/queues/requirements.txt tests/find_python
	@python=$$(tests/find_python); if [ -n "$$python" ]; then set -ex; \
	  "$$python" -m venv $(DJANGO6_VENV); \
	  $(DJANGO6_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt; \
	  $(DJANGO6_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/queues/requirements.txt; \
	  touch $@; fi

# Breaks the pure modules in two thousand small ways, one at a time, and looks whether a test notices: ten minutes.
# pyproject.toml says which modules and tests, tests/mutants.md why some faults cannot be noticed.
MUTANTS_VENV := .venv-mutants
MUTANTS_STAMP := $(MUTANTS_VENV)/.installed

mutants: $(MUTANTS_STAMP)
	rm -rf mutants
	nice -n 10 $(MUTANTS_VENV)/bin/mutmut run --max-children 1
	@$(MUTANTS_VENV)/bin/python tests/mutants.py

$(MUTANTS_STAMP): requirements.txt
	$(PYTHON) -m venv $(MUTANTS_VENV)
	$(MUTANTS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt mutmut==3.8.1
	@touch $@

# The supported versions, as far as their Pythons are here: docs/versions.md. SESSION="…" names one of `nox --list`.
NOX_VENV := .venv-nox

matrix:
	$(PYTHON) -m venv $(NOX_VENV)
	$(NOX_VENV)/bin/python -m pip install --quiet --disable-pip-version-check nox==2026.10.20
	$(NOX_VENV)/bin/nox -r $(if $(SESSION),-s "$(SESSION)")

# What a delivery costs, beside the peers: the tables of docs/performance.md. The benchmarks have an environment of
# their own: users need none of it.
BENCH_VENV := .venv-bench
BENCH_STAMP := $(BENCH_VENV)/.installed

bench: $(BENCH_STAMP)
	$(BENCH_VENV)/bin/python -m benchmarks
	$(BENCH_VENV)/bin/python -m benchmarks.page delivery

bench-full: $(BENCH_STAMP)
	$(BENCH_VENV)/bin/python -m benchmarks --full
	$(BENCH_VENV)/bin/python -m benchmarks.growth
	$(BENCH_VENV)/bin/python -m benchmarks.idle --only ours textbook node
	$(BENCH_VENV)/bin/python -m benchmarks.restart
	$(BENCH_VENV)/bin/python -m benchmarks.day
	$(BENCH_VENV)/bin/python -m benchmarks.servers
	$(BENCH_VENV)/bin/python -m benchmarks.servers --never-reads --rounds 1
	$(BENCH_VENV)/bin/python -m benchmarks.stamping
	$(BENCH_VENV)/bin/python -m benchmarks.bridge
	$(BENCH_VENV)/bin/python -m benchmarks.shards
	$(BENCH_VENV)/bin/python -m benchmarks.page

$(BENCH_STAMP): requirements.txt benchmarks/requirements.txt benchmarks/node/package-lock.json
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	@if command -v npm >/dev/null; then npm ci --prefix benchmarks/node --no-audit --no-fund; \
	  else echo "npm is not here: Socket.IO on Node will be left out"; fi
	@touch $@

$(STAMP): requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

clean:
	rm -rf $(VENV) $(BENCH_VENV) $(DOCS_VENV) $(GUIDES_VENV) $(DJANGO6_VENV) $(NOX_VENV) $(MUTANTS_VENV) .nox mutants benchmarks/node/node_modules tests/js/node_modules tests/pages/node_modules var build dist *.egg-info \
	  .mypy_cache .pytest_cache .ruff_cache .hypothesis
