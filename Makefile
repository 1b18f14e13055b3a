# make demo: the main job on real images, offline.  make table: the paper's table on them; call it again to
# continue after a stop.  make test: all tests, offline, on the CPU.
# All make .venv from requirements.txt first; PYTHON chooses the Python it is made with.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/installed

.PHONY: demo table test lint
demo: $(INSTALLED)
	$(VENV)/bin/python experiments/demo.py

table: $(INSTALLED)
	$(VENV)/bin/python experiments/paper_table.py --dataset digits

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -q -n auto

lint: $(INSTALLED)
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/lint-imports --no-logo 2>&1

$(INSTALLED): requirements.txt tests/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
	touch $@
