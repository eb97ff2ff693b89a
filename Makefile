# Everything that a newcomer needs: `make demo` runs the main job on a real model, `make test` runs the tests.
# Both install what they need into .venv and nowhere else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lowest docs clean

demo: $(VENV)/.demo
	$(BIN)/reprune demo

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

# Tests the lower bounds in pyproject.toml: runs the tests with the oldest releases that they admit, in an environment
# of its own. GGUF files need a newer Transformers, so their tests run again with the oldest that the extra gguf admits.
lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet uv
	$(INSTALL_LOWEST) --editable '.[dev]'
	$(TEST_LOWEST)
	$(INSTALL_LOWEST) --editable '.[dev,gguf]'
	$(TEST_LOWEST) $$(grep -rl --include='*.py' write_gguf tests)

INSTALL_LOWEST = $(VENV)-lowest/bin/uv pip install --quiet --python $(VENV)-lowest/bin/python \
	--resolution lowest-direct
TEST_LOWEST = PATH="$(CURDIR)/$(VENV)-lowest/bin:$$PATH" $(VENV)-lowest/bin/python -m pytest -n auto --maxprocesses 8 \
	--dist loadfile -W ignore::DeprecationWarning -W ignore::hypothesis.errors.HypothesisWarning

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "reprune needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get update -q && apt-get install -q -y python3-venv; } || \
		{ echo "Python's venv module is incomplete; on Debian: sudo apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-lowest site demo-output
