# Two commands: `make demo` and `make test`. Each creates .venv when it is missing; a second call starts at once.
PYTHON ?= python3
SHELL := /bin/bash
BIN := .venv/bin
READY := .venv/.ready

# Real data sets beside the checkout are used where they are; nothing needs them.
ifneq ($(wildcard ../shared/data),)
export SPARRING_DATA ?= $(abspath ../shared/data)
endif
export OMP_NUM_THREADS ?= 1

.PHONY: demo test units lint types install bench gallery docs outputs clean

demo: $(READY)
	$(BIN)/sparring demo

# Types are checked beside the tests: one more job for the processors that wait.
test: $(READY) lint
	$(MAKE) --no-print-directory -j2 types units

units: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

install: $(READY)

# The pictures of docs/gallery.md.
gallery: $(READY)
	$(BIN)/python docs/figures/make_gallery.py

# The site, docs/_build/html/index.html; a warning is an error.
docs: $(READY)
	$(BIN)/python -c "import sphinx, myst_parser, furo" 2>/dev/null || $(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	$(BIN)/python -m sphinx -q -E -a -W --keep-going -b html docs docs/_build/html
	@echo docs/_build/html/index.html

# What the code on these pages prints, written below it.
outputs: $(READY)
	$(BIN)/python docs/outputs.py docs/tutorials/*-*.md docs/tutorials/optimizers.md docs/getting-started.md docs/own-model.md docs/adding-*.md

# The peers that benchmarks compare with.
bench: $(READY)
	$(BIN)/pip install -q -c constraints.txt "foolbox>=3.3.4" "adversarial-robustness-toolbox>=1.18" "cleverhans>=4" scipy scikit-learn requests tqdm
	$(BIN)/pip install -q --no-deps "torchattacks>=3.5.1" "adv-lib>=0.2.3"

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,imagenet]'
	@touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
