# Two commands on a bare machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
DEMO ?= examples/reviews/demo.yaml
# Extra arguments for pip, e.g. another index with a smaller build of torch.
PIP_ARGS ?=

.PHONY: install demo test fast lint check format clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "error: $(PYTHON) not found; say which Python >= 3.11 to use: make PYTHON=python3"; exit 2; }
	@# Debian's Python makes no pip (ensurepip is a package of its own): the outer pip puts one in.
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) >/dev/null || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(BIN)/python install --quiet $(PIP_ARGS) pip; }
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[demo,dev]'
	touch $@

demo: install
	$(BIN)/lspm run $(DEMO)
	$(BIN)/lspm serve $(DEMO) --detach
	@$(BIN)/lspm predict $(DEMO) --sample 8; status=$$?; \
	if [ -n "$(KEEP)" ]; then \
	  echo "the endpoint is still running:"; \
	  echo "  ask it:  $(BIN)/lspm predict $(DEMO) 'Lovely fabric and a perfect fit.'"; \
	  echo "  by hand: curl -s http://127.0.0.1:8000/v1/predict -H 'content-type: application/json' -d '{\"text\": \"Lovely fabric.\"}'"; \
	  echo "  stop it: $(BIN)/lspm stop $(DEMO)"; \
	else $(BIN)/lspm stop $(DEMO); fi; exit $$status

test: install fast
	$(BIN)/python -m pytest -m "ray or e2e" --durations 10

# One process per CPU; tests that start Ray or whole commands use all CPUs themselves.
fast: install
	$(BIN)/python -m pytest -m "not ray and not e2e" --numprocesses auto --maxprocesses 8 --dist loadfile --durations 10

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint fast

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
