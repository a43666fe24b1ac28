# Two commands: `make demo` and `make test`. The first call makes .venv; later calls find it complete and go on at once.

VENV := .venv
WORKERS ?= 2
# An environment that exists is completed by its own interpreter; PYTHON=... chooses the one of a new environment.
PYTHON ?= $(if $(and $(wildcard $(VENV)/made-with.json),$(wildcard $(VENV)/bin/pip)),$(VENV)/bin/python,python3)

.PHONY: help demo test test-ipu test-s3 docs clean

help:
	@echo "make demo    pre-train a small ViT on an embedded data set, score it with k-NN, show it on a page"
	@echo "make test    run the whole test suite"
	@echo "make test-ipu   run the tests of --device ipu with the torch of the last Poplar SDK, in .venv-ipu; PYTHON is 3.10 or 3.11"
	@echo "make test-s3    run the tests of S3 shards against a server of the same protocol on this machine, in .venv-s3"
	@echo "make docs    build the documents as a site in output/docs; warnings are errors"
	@echo "make clean   remove $(VENV) and the caches; output/ stays"
	@echo "PYTHON=/path/to/python3 make demo   uses another interpreter; a torch it already has is kept"

demo:
	@$(PYTHON) tools/make_venv.py $(VENV) requirements-torch.txt requirements.txt
	$(VENV)/bin/python demo.py

test:
	@$(PYTHON) tools/make_venv.py $(VENV) requirements-torch.txt requirements.txt requirements-test.txt requirements-docs.txt
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# A second environment with the torch that PopTorch 3.4 wants, and what --device ipu reaches in it.
IPU_TESTS := tests/test_poptorch_fake.py tests/devices/test_pipeline.py tests/cli/test_align.py \
	tests/devices/test_ipu.py tests/weights/test_ipu_checkpoint.py tests/training/test_ipu_runs.py

test-ipu:
	$(PYTHON) -m venv .venv-ipu
	.venv-ipu/bin/python -m pip install --quiet -r requirements-ipu.txt "pytest>=8.0" "hypothesis>=6.100"
	OMP_NUM_THREADS=1 .venv-ipu/bin/python -m pytest $(IPU_TESTS)

# An environment of its own, since botocore wants older versions of what others here want.
test-s3:
	@$(PYTHON) tools/make_venv.py .venv-s3 requirements-torch.txt requirements.txt requirements-s3.txt
	.venv-s3/bin/python -m pytest tests/data/test_remote_s3.py

docs:
	@$(PYTHON) tools/make_venv.py $(VENV) requirements-torch.txt requirements.txt requirements-docs.txt
	$(VENV)/bin/python -m sphinx -W --keep-going -b html -d output/docs-cache docs output/docs

clean:
	rm -rf $(VENV) .venv-ipu .venv-s3 .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
