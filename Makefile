# Every task of the project. `make` alone lists them; CI runs the same targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LOCKS  := deploy/requirements.lock deploy/requirements-dev.lock
COMPILE = $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --no-emit-find-links --no-header --no-annotate
DIST   := dist
LOCKED = $(shell sed -n 's/^\([a-z0-9._-]*\)==.*/\1/p' deploy/requirements.lock)
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo run sandbox test docs soak bench chaos check fmt fmt-check lint types lock licences sbom audit clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml $(LOCKS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3-venv is needed: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

setup: $(STAMP) ## create .venv with the locked dependencies

demo: $(STAMP) ## download a sandbox order as a ZIP through the real service
	@$(BIN)/python -m service demo

run: $(STAMP) ## start the service (needs AUTOENHANCE_API_KEY, see .env.example)
	@$(BIN)/python -m service serve

sandbox: $(STAMP) ## start the service with a sandbox of the API: no API key, no credits
	@$(BIN)/python -m service serve --sandbox

test: $(STAMP) ## run the tests, on up to four cores (ARGS=-n0: in one process)
	@$(BIN)/python -m pytest -q -n auto --maxprocesses=4 --dist worksteal $(ARGS)

docs: $(STAMP) ## write the generated tables into the documents
	@$(BIN)/python -m tests.docs

soak: $(STAMP) ## run the tests of huge archives (minutes; 12 GiB of disk)
	@$(BIN)/python -m pytest -q -m soak tests $(ARGS)

bench: $(STAMP) ## measure speed and memory against the limits of the stack (minutes; needs an idle machine)
	@$(BIN)/python -m tests.bench $(ARGS)

chaos: $(STAMP) ## run archives under random faults for a minute (SECONDS=600 SEED=7 to change that)
	@$(BIN)/python -m tests.chaos --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED))

check: fmt-check lint types ## run the checks of CI besides the tests: format, lint, types

fmt: $(STAMP) ## format the code and apply the fixes of ruff
	@$(BIN)/ruff format service tests
	@$(BIN)/ruff check --fix service tests

fmt-check: $(STAMP)
	@$(BIN)/ruff format --check service tests

lint: $(STAMP)
	@$(BIN)/ruff check service tests
	@$(BIN)/codespell --dictionary - --dictionary .ci/banned-words.txt service tests deploy README.md CHANGELOG.md CONTRIBUTING.md

types: $(STAMP)
	@$(BIN)/mypy

lock: $(STAMP) ## compile the lock files from pyproject.toml
	@$(COMPILE) pyproject.toml --extra sentry -o deploy/requirements.lock
	@$(COMPILE) pyproject.toml --extra sandbox --extra dev -o deploy/requirements-dev.lock
	@$(COMPILE) --group build -o deploy/requirements-build.lock

licences: $(STAMP) ## write deploy/LICENCES.md: the packages of a deployment and their licences
	@{ printf '%s\n' '# Licences of what a deployment installs' '' \
	  'Made by `make licences` from `deploy/requirements.lock`. The packages are used as they are, none is changed.' \
	  'Swagger UI, which the service brings along, is Apache-2.0: see `service/web/site/static/vendor/README.md`.' ''; \
	  $(BIN)/pip-licenses --format=markdown --with-urls --order=name --packages $(LOCKED); } > deploy/LICENCES.md

sbom: $(STAMP) ## write dist/sbom.json: the packages of a deployment, in CycloneDX format
	@mkdir -p $(DIST)
	@$(BIN)/cyclonedx-py requirements deploy/requirements.lock --pyproject pyproject.toml --mc-type application \
	  --output-reproducible --validate -o $(DIST)/sbom.json

audit: $(STAMP) ## check the locked packages for known vulnerabilities (online; not part of CI)
	@$(BIN)/pip-audit --disable-pip --require-hashes --strict -r deploy/requirements.lock

clean: ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
