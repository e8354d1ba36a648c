# No target needs another one to have run first, each can be run twice, and none leaves anything
# behind but .venv/ and what `clean` takes away.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install demo test check bench clean

BIN := .venv/bin
ARGS ?=

help:
	@echo "make demo      a flannel cluster on this machine, shown step by step"
	@echo "make test      the whole test suite (ARGS=... goes to pytest)"
	@echo "make check     formatter, linter, types, import contracts"
	@echo "make bench     the benchmarks (ARGS=... goes to them)"
	@echo "make install   what the others do first: system packages, .venv/"
	@echo "make clean     takes away .venv/ and all caches"

install:
	@tools/bootstrap.sh

demo: install
	@$(BIN)/pyflannel lab demo $(ARGS)

test: install
	@$(BIN)/python -m pytest $(ARGS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy pyflannel tests/typing
	$(BIN)/lint-imports

bench: install
	@$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find pyflannel tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
	find pyflannel -name '*.so' -delete
