# Two commands: `make demo` and `make test`. The first call makes .venv; later calls find it complete and go on at once.

VENV := .venv
WORKERS ?= 2
# An environment that exists is completed by its own interpreter; PYTHON=... chooses the one of a new environment.
PYTHON ?= $(if $(wildcard $(VENV)/installed-requirements.json),$(VENV)/bin/python,python3)

.PHONY: help demo test clean

help:
	@echo "make demo    pre-train a small ViT on an embedded data set, score it with k-NN, draw attention maps"
	@echo "make test    run the whole test suite"
	@echo "make clean   remove $(VENV) and the caches; output/ stays"
	@echo "PYTHON=/path/to/python3 make demo   uses another interpreter; a torch it already has is kept"

demo:
	@$(PYTHON) tools/make_venv.py $(VENV) requirements.txt
	$(VENV)/bin/python demo.py

test:
	@$(PYTHON) tools/make_venv.py $(VENV) requirements.txt requirements-test.txt
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile

clean:
	rm -rf $(VENV) .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
