# Needs Python 3.11 or newer, venv and git; everything else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
ARGS ?=
# Test processes: two per core, because many tests wait for other processes and time limits; at most 8, to limit memory.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$(( n < 4 ? 2 * n : 8 )))

.PHONY: setup train test test-oldest quick docs dist test-cluster browser check format clean

setup: $(VENV)/.installed

# torch first, so that packages that depend on it find the pinned build installed
$(VENV)/.installed: requirements/pins.txt requirements/needs-compiler.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$$(grep '^torch==' requirements/pins.txt)"
	$(BIN)/pip install --quiet -r requirements/pins.txt
	$(BIN)/pip install --quiet -r requirements/needs-compiler.txt || \
	  echo "reasoning-gym cannot be installed (it needs a C compiler): its tests will be skipped"
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

train: setup
	$(BIN)/gtpo demo $(ARGS)

# Keep the order of tests/conftest.py, slowest files first; by default xdist starts with the files that have the most tests.
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
# Tests start many processes that import gtpo. Without .pyc files, each of them would compile it again.
test test-oldest quick: export PYTHONDONTWRITEBYTECODE =
# With two processes per core, more torch threads would only spin while waiting for each other.
test test-oldest: export OMP_NUM_THREADS = 1

test: setup
	$(PYTEST) $(ARGS)

# The tests that depend on TRL, with the oldest TRL that pyproject.toml allows; `make test` uses the pinned version.
OLDEST_TRL = $(shell sed -n 's/.*"trl>=\([0-9.]*\),.*/\1/p' pyproject.toml)
ON_TRL = $(addprefix tests/training/test_,trl_compat.py trainer.py overlap.py groups.py own_rewards.py own_environment.py \
  from_trl.py micro_batch.py data_sets.py trl_options.py checkpoints.py)

test-oldest: setup
	$(BIN)/pip install --quiet --upgrade --no-deps --target $(VENV)/oldest "trl==$(OLDEST_TRL)"
	PYTHONPATH=$(VENV)/oldest $(PYTEST) $(ON_TRL) $(ARGS)

# Fast tests without training (formulas, rollouts, verifiers, records), to run while editing: see CONTRIBUTING.md.
QUICK = tests/functional tests/similarity tests/test_credit_assignment.py tests/test_advice.py tests/test_prose.py tests/cli/test_terminal.py tests/planning \
  $(addprefix tests/rollout/test_,config.py encoding.py formats.py loop.py repetition.py token_offsets.py tools.py) \
  $(addprefix tests/tasks/test_,choice_verifier.py math_verifier.py problems.py qa_verifier.py worked_solutions.py) \
  tests/training/test_remarks.py tests/training/test_sampler.py \
  $(addprefix tests/examples/test_,contributing.py notebook.py package.py site.py)

quick: setup
	$(BIN)/python -m pytest $(QUICK) -m "not slow" $(ARGS)

$(VENV)/.docs: $(VENV)/.installed requirements/docs.txt
	$(BIN)/pip install --quiet -r requirements/docs.txt
	touch $@

# Strict: a broken link, a page outside the navigation and an undocumented public name fail the build.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

dist: setup
	rm -rf dist
	$(BIN)/python -m build

# verl, Ray and DeepSpeed get a separate environment, because verl needs a different transformers version than the newest TRL.
$(VENV)-cluster/.installed: requirements/cluster.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-cluster
	$(VENV)-cluster/bin/pip install --quiet "$$(grep '^torch==' requirements/cluster.txt)"
	$(VENV)-cluster/bin/pip install --quiet --no-deps -r requirements/cluster.txt
	$(VENV)-cluster/bin/pip install --quiet --no-deps --editable .
	touch $@

test-cluster: $(VENV)-cluster/.installed
	$(VENV)-cluster/bin/python -m pytest tests/integrations tests/training/test_distributed.py $(ARGS)

# Installs a browser: the tests of the report open it in a real one and are skipped without it.
browser:
	@command -v chromium || command -v google-chrome || { apt-get update -qq && apt-get install -y -qq chromium; }

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test ARGS="$(ARGS)"

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(VENV)-cluster build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
