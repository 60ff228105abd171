# The two that a newcomer needs: `make demo` and `make test`. Each sets up what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell git ls-files setup.py pyproject.toml 'cni/*' 'plugins/*' 'src/*' 2>/dev/null || find cni plugins src)
# Extra words for pytest: make test ARGS="-k bridge"
ARGS ?=

.PHONY: help demo test bench lint fix docs pictures develop man wheel clean

help:
	@echo "make demo     two containers join a network and ping each other, in namespaces of their own"
	@echo "make test     the test-suite (root)"
	@echo "make bench    attachments beside the Go plugins of Debian (root); ARGS=--help for more"
	@echo "make lint     ruff, mypy and clang-format; 'make fix' corrects what they can correct"
	@echo "make docs     the documentation as a site, in build/docs"
	@echo "make pictures draw the pictures in the documentation anew (root, podman; on an idle machine)"
	@echo "make develop  build in place; then PYTHONPATH=$$PWD/build/dev"
	@echo "make man      write the manual pages anew, after a change of a command line"
	@echo "make wheel    build a wheel and try it in a fresh environment"

demo: $(VENV)/.demo
	scripts/demo $(BIN)

test: $(VENV)/.test
	$(BIN)/pytest -n 4 $(ARGS)

bench: $(VENV)/.test
	$(BIN)/cni bench $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy cni plugins docs/examples src/launcher/boot.py tests/unit/test_config.py
	$(BIN)/clang-format --dry-run --Werror src/*/*.[ch]

fix: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i src/*/*.[ch]

docs: $(VENV)/.test
	$(BIN)/sphinx-build -q -W --keep-going -n -b html docs build/docs

pictures: $(VENV)/.test
	scripts/pictures $(BIN)

develop: $(VENV)/.test
	mkdir -p build/dev
	ln -sfn ../../cni build/dev/cni
	ln -sfn ../../plugins build/dev/cni_plugins
	$(BIN)/pip install -q 'setuptools>=77' 'cython>=3.1' 'cffi>=1.15'
	$(BIN)/python setup.py -q build_ext --inplace
	$(BIN)/python setup.py -q egg_info --egg-base build/dev

man: $(VENV)/.test
	$(BIN)/python scripts/manual.py docs/man

wheel: $(VENV)/.test
	scripts/try-wheel $(PYTHON)

clean:
	rm -rf build dist $(VENV) cni/_core.*.so cni/_launcher cni/_nftables.py

# ---- set-up: Debian's packages (only what is missing), a virtual environment, this package in it ----

$(VENV)/.demo: $(SOURCES)
	scripts/setup demo
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -rf build/lib*  # setuptools would install modules that are gone, from the last build
	$(BIN)/pip install -q .
	touch $@

$(VENV)/.test: $(SOURCES)
	scripts/setup test
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -rf build/lib*
	$(BIN)/pip install -q '.[test,lint,docs,wheels]'
	touch $@ $(VENV)/.demo
