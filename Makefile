# make demo | test | docs: each makes .venv, installs, and runs. PYTHON=python3.12 chooses an interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-full lint docs clean

install: $(VENV)/installed

# Made anew when the dependencies or the interpreter change; the package itself is installed in place.
$(VENV)/installed: pyproject.toml $(VENV)/interpreter
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,docs,export,serve]'
	@# Without what it asks for, an older orbax-checkpoint.
	$(BIN)/python -m pip install --quiet --no-deps jax2onnx
	@# The compiler for TPUs, for tests; beside the packages, for jax would look for a TPU with it.
	-$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/libtpu libtpu
	@# And the compiler for GPUs, of the version of jaxlib.
	-version=$$($(BIN)/python -c 'import jaxlib; print(jaxlib.__version__)') && \
		$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/cuda \
		jax-cuda13-plugin==$$version jax-cuda13-pjrt==$$version
	touch $@

# An environment that somebody else made is taken as it is, if it has that interpreter, and never removed.
$(VENV)/interpreter: FORCE
	@which='import sys; print(sys.base_prefix, sys.version)'; \
	wanted=$$($(PYTHON) -c "$$which"); found=$$($(BIN)/python -c "$$which" 2>/dev/null); \
	if [ "$$found" = "$$wanted" ]; then \
		[ -e $@ ] || echo taken > $@; \
	elif [ -e $(VENV) ] && [ "$$(cat $@ 2>/dev/null || echo taken)" = taken ]; then \
		echo "$(VENV) has another Python ($$found), and make did not make it. Remove it, or choose its Python by PYTHON=..."; exit 1; \
	else \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxseg needs Python 3.11 or newer")' && \
		rm -rf $(VENV) && $(PYTHON) -m venv $(VENV) && echo made > $@; \
	fi

FORCE:

demo: install
	$(BIN)/python -m jaxseg.data.synthetic --output data/street_scenes
	$(BIN)/python -m jaxseg.main --config configs/demo.py

test: install lint
	$(BIN)/python -m pytest

test-full: install lint
	$(BIN)/python -m pytest -m 'full or not full'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# The tables that are made from the code, then the pages; a warning is an error.
docs: install
	$(BIN)/python docs/gen/config_reference.py > docs/reference/config.md
	$(BIN)/python docs/gen/cli_reference.py > docs/reference/cli.md
	$(BIN)/python docs/gen/zoo_table.py > docs/models/zoo.md
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -b html docs docs/_build/html

clean:
	rm -rf $(VENV)
