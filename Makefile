# Everything runs inside .venv, with the versions of requirements.lock.
.PHONY: help setup demo test interop lint format lock clean
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.polopt-installed
DEMO := runs/demo

help:
	@echo "make setup   create .venv with the locked versions and polopt in it"
	@echo "make demo    train PPO on CartPole-v1 with five seeds into $(DEMO), anew each time"
	@echo "make test    run the tests"
	@echo "make interop run the tests against verl and TRL, in an environment of their own"
	@echo "make lint    check the style; make format mends what can be mended"
	@echo "make lock    resolve the versions anew and write requirements.lock"

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python was found; polopt needs Python 3.11 or newer. Install it, or name one: make setup PYTHON=/path/to/python3.11"; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is `"$(PYTHON)" --version`, but polopt needs Python 3.11 or newer. Name one: make setup PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

# The command ends by naming the learning curve and the report.
demo: setup
	@rm -rf $(DEMO)
	$(BIN)/polopt train ppo --env CartPole-v1 --seeds 5 --steps 500000 --out $(DEMO)

# A worker for each core, of which each computes on one thread (tests/conftest.py) and takes up to 5 GB.
WORKERS ?= $(shell n=`nproc 2>/dev/null || echo 2`; [ $$n -lt 4 ] && echo $$n || echo 4)

test: setup
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

# verl and TRL bring half of the field with them and want versions of their own: they stay out of .venv and of the lock.
interop: .cache/interop/.installed
	.cache/interop/bin/python -m pytest -q tests/interop/test_verl.py tests/interop/test_trl.py

.cache/interop/.installed: pyproject.toml
	test -x .cache/interop/bin/python || "$(PYTHON)" -m venv .cache/interop
	.cache/interop/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.cache/interop/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -e ".[verl,trl]" beartype pytest
	@touch $@

lint: setup
	$(BIN)/ruff check .

format: setup
	$(BIN)/ruff check --fix .

# torch is asked for by its exact version, so that a build without CUDA that is at hand is taken; its local suffix is not kept.
lock:
	rm -rf .cache/lock && "$(PYTHON)" -m venv .cache/lock
	.cache/lock/bin/python -m pip install --disable-pip-version-check torch==2.13.0
	.cache/lock/bin/python -m pip install --disable-pip-version-check torch==2.13.0 ".[mujoco,envpool,export,video,tensorboard,data,language,dev]" $(LOCK_OPTIONS)
	.cache/lock/bin/python -m pip uninstall --yes --quiet polopt
	{ echo "# The versions that make installs, made by 'make lock'."; \
	  .cache/lock/bin/python -m pip freeze | sed -E 's/\+[a-z0-9]+$$//' | LC_ALL=C sort -f; } > requirements.lock
	rm -rf .cache/lock

clean:
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis build dist
