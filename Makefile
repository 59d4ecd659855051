# make demo   set up .venv, build, and train the example at its small setting
# make demo-gigapixel
#             the same set-up, then the example on slides of 40,000 x 40,000, which it writes (1 GB in demo-gigapixel-output)
# make test   the same set-up, then every test
# make bench  the same set-up, then every benchmark: tables in benchmarks/results (Google Benchmark is fetched if need be)
# make test-cuda, make bench-cuda
#             on a machine with a GPU and nvcc, with the packages of its own Python and no network: every test on CUDA, and
#             every benchmark of it; what they found goes to benchmarks/results/cuda_*
# make clean  remove .venv and everything built (outputs of the demos stay)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two, because compiling against TensorFlow takes a gigabyte a job; make JOBS=8 where there is room.
JOBS ?= $(shell cores=$$(nproc 2>/dev/null || echo 1); [ $$cores -lt 2 ] && echo $$cores || echo 2)

# Files go to the processes whole, for what their tests share, and in order: the last ones are short.
PYTEST_JOBS := -n $(JOBS) --dist loadfile --no-loadscope-reorder

MACHINES_PATH := $(PATH)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
export CTEST_PARALLEL_LEVEL := $(JOBS)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Everything that the installed package is made of.
SOURCES := $(shell find CMakeLists.txt pyproject.toml cmake libats bindings python -type f ! -path '*/__pycache__/*')

.PHONY: demo demo-gigapixel test bench test-cuda bench-cuda install clean
.DELETE_ON_ERROR:

demo: install
	$(BIN)/python examples/megapixel_mnist.py --out demo-output --resume

demo-gigapixel: install
	$(BIN)/python examples/gigapixel.py --out demo-gigapixel-output --resume

test: install
	$(BIN)/cmake --workflow --preset sanitize
	$(BIN)/cmake --workflow --preset release
	$(BIN)/python -m pytest $(PYTEST_JOBS)
	KERAS_BACKEND=torch $(BIN)/python -m pytest -m keras $(PYTEST_JOBS)

bench: install
	$(BIN)/cmake --preset release
	$(BIN)/cmake --build --preset bench

# Not in .venv: PyTorch for CUDA is gigabytes, and is there already.
test-cuda bench-cuda: export PATH := $(MACHINES_PATH)
test-cuda:
	$(PYTHON) tests/cuda/run.py --out benchmarks/results

bench-cuda:
	$(PYTHON) tests/cuda/run.py --build-only
	PYTHONPATH=build/test-cuda/site $(PYTHON) benchmarks/cuda_peers.py --out benchmarks/results

install: $(VENV)/.installed

$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES)
	$(BIN)/python -m pip install --no-build-isolation --no-deps --config-settings=build-dir=build/python .
	touch $@

$(VENV)/.dependencies: constraints.txt $(VENV)/.created
	$(BIN)/python -m pip install -r constraints.txt
	touch $@

$(VENV)/.created:
	@$(PYTHON) cmake/preflight.py
	$(PYTHON) -m venv $(VENV)
	touch $@

clean:
	rm -rf $(VENV) build dist
