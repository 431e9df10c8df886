# Every target sets up what it needs; only git, make and Python 3.11 or 3.12 must be installed.
# Choose another Python with `make venv PYTHON=python3.12`.
PYTHON ?=
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: help venv demo test test-all check format docs bench icons smollm2 clean

help:
	@echo "make demo      generate, describe, answer and chat with the default model"
	@echo "make test      run the tests, without slow ones (with CI=true, all of them)"
	@echo "make test-all  run all tests"
	@echo "make check     lint, types, layers, language and generated pages"
	@echo "make format    format the code"
	@echo "make docs      regenerate docs/cli.md and docs/config.md"
	@echo "make bench     list the benchmarks"
	@echo "make icons     fetch the icon sets and word lists of the built-in data into data/"
	@echo "make smollm2   expand SmolLM2-135M, to chat with, into runs/smollm2"
	@echo "make venv      only set up .venv"
	@echo "make clean     remove .venv, caches and outputs (data/ and runs/ stay)"

venv: .venv/.ready

.venv/.ready: pyproject.toml setup.py constraints.txt scripts/setup.sh $(wildcard src/liquidmm/generate/backends/cpu/*.[ch])
	PYTHON="$(PYTHON)" bash scripts/setup.sh
	@touch $@

demo: .venv/.ready
	bash scripts/demo.sh

# One thread per worker: the models of the tests are tiny, and workers must not compete for cores.
test: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(if $(CI),,-m "not slow")

test-all: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

check: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_language.py
	$(BIN)/python scripts/cli_page.py | diff docs/cli.md - || { echo "run: make docs"; exit 1; }
	$(BIN)/python scripts/config_page.py | diff docs/config.md - || { echo "run: make docs"; exit 1; }

format: .venv/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/.ready
	$(BIN)/python scripts/cli_page.py > docs/cli.md.new && mv docs/cli.md.new docs/cli.md
	$(BIN)/python scripts/config_page.py > docs/config.md.new && mv docs/config.md.new docs/config.md

bench: .venv/.ready
	@sed -n '/^|/p' benchmarks/README.md

icons: .venv/.ready
	bash scripts/icons.sh

smollm2: .venv/.ready
	bash scripts/smollm2.sh

clean:
	rm -rf .venv build outputs .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
