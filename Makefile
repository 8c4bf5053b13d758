# The front door. It needs python3 (3.11 or newer) with its venv module, and make; everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
ARGS :=

BIN := $(VENV)/bin
# One stamp for each set of packages. Its name carries PYTHON, or `make test PYTHON=python3.13` after `make test` would
# find a stamp and quietly test with the old Python.
READY := $(VENV)/.ready-$(subst /,_,$(PYTHON))
STAMPS := $(READY)-run $(READY)-test $(READY)-dev $(READY)-bench $(READY)-verify

.DEFAULT_GOAL := help
.PHONY: help reproduce test check bench verify clean
.NOTPARALLEL:  # two pips must never write into one .venv

help:  ## list these targets
	@echo "make TARGET [ARGS='more options'] [PYTHON=python3.12]"
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1	\2/p' Makefile | expand -t 14

reproduce: $(READY)-run  ## set up, then reproduce all papers into out/; ARGS (say, 'ga --why') go to npmoe.reproduce
	@$(BIN)/python -m npmoe.reproduce --output out $(ARGS)

test: $(READY)-test  ## set up, then run the tests, one process a core; ARGS go to pytest
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

check: $(READY)-dev  ## lint, format and types: ruff check, ruff format --check, mypy
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy npmoe $(wildcard bench/*.py)

bench: $(READY)-bench  ## set up with PyTorch and JAX, then time npmoe beside them; ARGS go to bench
	@$(BIN)/python -m bench $(ARGS)

verify: $(READY)-verify  ## set up with PyTorch, JAX and autograd, then hold them against npmoe; ARGS go to npmoe.verify
	@$(BIN)/python -m npmoe.verify --output out $(ARGS)

clean:  ## remove .venv, caches and build files; what the runs left in out/ stays
	rm -rf $(VENV) build dist npmoe.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path './.?*' -prune -o -path ./out -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# .unfinished stands from the first step of a set-up to its last. Where one was interrupted, no stamp in .venv counts any
# more, and .venv is made anew.
ifneq ($(wildcard $(VENV)/.unfinished),)
.PHONY: $(STAMPS)
endif
$(STAMPS): $(READY)-%: setup.cfg pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	    echo "npmoe needs Python 3.11 or newer, and found no '$(PYTHON)'; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:3]; v >= (3, 11) or sys.exit("npmoe needs Python 3.11 or newer, and $(PYTHON) is %d.%d.%d; name another: make $(MAKECMDGOALS) PYTHON=/path/to/python3" % v)'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) comes without its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@version='import sys; print("%d.%d" % sys.version_info[:2])'; \
	want=$$($(PYTHON) -c "$$version"); have=$$($(BIN)/python -c "$$version" 2>/dev/null); \
	if [ -e $(VENV)/.unfinished ]; then echo "$(VENV) was left unfinished: making it anew" >&2; rm -rf $(VENV); \
	elif [ -e $(VENV) ] && [ "$$have" != "$$want" ]; then \
	    echo "$(VENV) has Python $${have:-(none that runs)}, not $$want: making it anew" >&2; rm -rf $(VENV); fi
	@echo "setting up $(VENV) (the first time takes a minute or two)" >&2
	@mkdir -p $(VENV) && touch $(VENV)/.unfinished
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check --editable '.$(if $(filter-out run,$*),[$*])'
	@touch $@ && rm -f $(VENV)/.unfinished
