# Needs Python 3.11 or newer, venv and git; everything else goes into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
ARGS ?=

.PHONY: setup train test test-cluster browser check format clean

setup: $(VENV)/.installed

# torch first: what depends on it must find the pinned build already there
$(VENV)/.installed: requirements/pins.txt requirements/needs-compiler.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$$(grep '^torch==' requirements/pins.txt)"
	$(BIN)/pip install --quiet -r requirements/pins.txt
	$(BIN)/pip install --quiet -r requirements/needs-compiler.txt || \
	  echo "reasoning-gym can't be installed here (it needs a C compiler): its tests will be skipped"
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

train: setup
	$(BIN)/gtpo demo $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

# verl, Ray and DeepSpeed. verl wants another transformers than TRL's newest: an environment of its own.
$(VENV)-cluster/.installed: requirements/cluster.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-cluster
	$(VENV)-cluster/bin/pip install --quiet "$$(grep '^torch==' requirements/cluster.txt)"
	$(VENV)-cluster/bin/pip install --quiet --no-deps -r requirements/cluster.txt
	$(VENV)-cluster/bin/pip install --quiet --no-deps --editable .
	touch $@

test-cluster: $(VENV)-cluster/.installed
	$(VENV)-cluster/bin/python -m pytest tests/integrations tests/training/test_distributed.py $(ARGS)

# The tests of the report open it in a real browser and are skipped where there is none.
browser:
	@command -v chromium || command -v google-chrome || { apt-get update -qq && apt-get install -y -qq chromium; }

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(ARGS)

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(VENV)-cluster build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
