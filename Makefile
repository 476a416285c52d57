# make run     analyse real data in a sandbox, as an MCP client does
# make test    run the tests, in two processes; JOBS=4 in four, each with a server of its own
# make test-gvisor  run the tests of the API with sandboxes under gVisor, and every attack (wants runsc; takes an hour)
# make examples  run the examples for other people's agent frameworks, each in an environment of its own
# make check   lint, formatting, types
# make bench   measure all figures; BENCH="first_result network" only those
# make conformance  run other people's MCP clients and the protocol's suite (wants npm)
# make matrix  install a hundred packages in sandboxes and use them (takes long; writes docs/reference/PACKAGES.md)
# make lock    pin the packages of the built-in templates anew
# make clean   remove what the other targets made here
#
# Each makes the virtual environment .venv first, once. PYTHON chooses the interpreter (3.11, 3.12 or 3.13).

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(SUITABLE)' 2>/dev/null && echo $$python && break; done)
JOBS ?= 2
BENCH ?= first_result e2b_operations fork_and_pause volumes network isolation gvisor mcp_server
REQUIREMENTS := src/ringfence/engine/templates/requirements
# uv reads none of pip's settings; this passes on where the user's pip gets its packages.
UV := $(BIN)/python src/ringfence/engine/templates/indexes.py $(BIN)/uv

.PHONY: run test test-gvisor examples check bench conformance matrix lock clean

run: $(READY)
	@$(BIN)/python examples/analyse_penguins.py

# The templates first: building them takes minutes, and a test has two.
test: $(READY)
	@$(BIN)/ringfence template build base code-interpreter-mini code-interpreter-v1
	@$(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadfile

GVISOR_TESTS := $(addprefix tests/conformance/test_conformance_,$(addsuffix .py,\
	sandbox commands code files environment sudo terminal git properties)) \
	$(addprefix tests/server/test_,$(addsuffix .py,\
	gvisor pause snapshots kernel_state limits_told proxy volumes languages)) tests/engine/proof/test_battery.py

test-gvisor: $(READY)
	@$(BIN)/ringfence template build base code-interpreter-v1
	@RINGFENCE_TEST_ISOLATION=gvisor $(BIN)/python -m pytest -o timeout=600 $(GVISOR_TESTS)

examples: $(READY)
	@$(BIN)/python -m pytest tests/examples -m 'frameworks or not load'

check: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(READY)
	@for name in $(BENCH); do echo "== $$name"; $(BIN)/python bench/$$name.py || exit 1; done

conformance: $(READY)
	@$(UV) pip install --quiet --python $(BIN)/python --group clients
	@$(BIN)/python tests/clients/conformance.py

matrix: $(READY)
	@$(BIN)/python tests/matrix/run.py

lock: $(READY)
	@for name in code-interpreter-v1 code-interpreter-mini; do \
		$(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 --only-binary :all: \
			--no-annotate --no-emit-index-url --custom-compile-command 'make lock' \
			$$([ $$name = code-interpreter-v1 ] || echo --constraint $(REQUIREMENTS)/code-interpreter-v1.txt) \
			--output-file $(REQUIREMENTS)/$$name.txt $(REQUIREMENTS)/$$name.in || exit 1; \
	done
	@cd $(REQUIREMENTS)/node && npm update --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved --no-audit --no-fund

clean:
	rm -rf $(VENV) out dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): pyproject.toml
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c '$(SUITABLE)'; then \
		echo "Ringfence needs Python 3.11, 3.12 or 3.13 (on Debian and Ubuntu: apt install python3 python3-venv)." >&2; \
		echo "Is it installed under another name? Then: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
		exit 1; \
	fi
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		echo "$(PYTHON) cannot make virtual environments: the package python$$version-venv is missing." >&2; \
		echo "On Debian and Ubuntu: apt install python$$version-venv" >&2; \
		exit 1; \
	fi
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(UV) pip install --quiet --python $(BIN)/python --editable . --group dev
	@touch $@
