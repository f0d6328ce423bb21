# Every target makes the environment it needs, from nothing but Python 3.11+ and make.
PYTHON ?= python3
ENVS ?= .venvs
BASE := $(ENVS)/base
DEV := $(ENVS)/dev
DATA ?= ../shared/data/cats_dogs
PIP_FLAGS := --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint types bench docs screenshot clean

demo: $(BASE)/.ready                 ## base install, no PyTorch: train on digits that come with scikit-learn
	$(BASE)/bin/tellapart demo

test: $(DEV)/.ready $(BASE)/.ready   ## all tests; the base environment shows that what ships needs no PyTorch
	TELLAPART_BASE_PYTHON=$(abspath $(BASE))/bin/python $(DEV)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(DEV)/.ready
	$(DEV)/bin/ruff check
	$(DEV)/bin/ruff format --check
	$(DEV)/bin/lint-imports

types: $(DEV)/.ready
	$(DEV)/bin/mypy

bench: $(DEV)/.ready                 ## DATA=FOLDER chooses the images
	$(DEV)/bin/python bench/train.py $(DATA)
	$(DEV)/bin/python bench/predict.py $(DATA)

docs: $(DEV)/.ready                  ## docs/errors.md from the list of codes
	$(DEV)/bin/python docs/make_errors.py

screenshot: $(DEV)/.ready            ## docs/images: the server's page; needs chromium
	$(DEV)/bin/python docs/make_screenshot.py

clean:
	rm -rf $(ENVS)

$(BASE)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BASE)
	$(BASE)/bin/pip install --quiet --disable-pip-version-check "pip>=25.3"
	$(BASE)/bin/pip install $(PIP_FLAGS) --editable .
	touch $@

$(DEV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/pip install --quiet --disable-pip-version-check "pip>=25.3"
	$(DEV)/bin/pip install $(PIP_FLAGS) --editable ".[train,backbones,serve]" --group dev
	touch $@
