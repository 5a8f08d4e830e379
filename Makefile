# Two commands: `make demo` and `make test`. Both build the environment first; the second run installs nothing.

VENV   ?= .venv
OUT    ?= out/demo
DATA   ?=
PORT   ?= 8000
N      ?= 200
ROOM   ?=
LIMIT  ?= 100
SEED   ?= 1
MINUTES ?= 10
IMAGE  ?= score-serve
PACKAGES ?= browser ceph kubernetes monitoring
PYTHON ?= python3

BIN    := $(abspath $(VENV))/bin
SCRATCH := $(or $(TMPDIR),/tmp)/leukoray-$(shell id -u)

# Nothing outside VENV, OUT and the temp folder is written: not the home folder, not the checkout. System packages that
# tests want are installed where apt and root are there, by `make test` alone; PACKAGES= leaves the system as it is.
export PYTHONDONTWRITEBYTECODE := 1
export XDG_CACHE_HOME      := $(SCRATCH)/cache
export XDG_CONFIG_HOME     := $(SCRATCH)/config
export MPLCONFIGDIR        := $(SCRATCH)/matplotlib
export RAY_USAGE_STATS_ENABLED := 0
export PYTHON INSTALL_FLAGS
# In VENV, which is one checkout's: several may be tested side by side.
export COVERAGE_FILE       := $(abspath $(VENV))/coverage
MEASURED := $(if $(COVERAGE),--cov --cov-append --cov-report= --cov-fail-under=0)

.PHONY: help demo serve test test-infra lint format image lock reference bench bench-score bench-train bench-serve mutants fuzz soak chaos test-lowest test-newest audit sbom clean
.DEFAULT_GOAL := help

help: ## this list
	@echo "leukoray: detection of leukemia in microscope images of blood cells, on Ray. Not a medical device."
	@echo
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'
	@echo
	@echo "variables: VENV=$(VENV)  OUT=$(OUT)  DATA=$(or $(DATA),<synthetic samples>)  PORT=$(PORT)  PYTHON=$(PYTHON)"

$(VENV)/.installed: pyproject.toml infra/setup.sh
	@infra/setup.sh $(abspath $(VENV)) pretrained
	@touch $@

$(VENV)/.installed-test: pyproject.toml infra/setup.sh
	@infra/setup.sh $(abspath $(VENV)) test
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml infra/setup.sh
	@infra/setup.sh $(abspath $(VENV)) test,bench
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed

$(VENV)/.installed-fuzz: pyproject.toml infra/setup.sh
	@infra/setup.sh $(abspath $(VENV)) test,fuzz
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed

demo: $(VENV)/.installed ## the whole way of an image; DATA=folder or s3:// prefix takes the place of samples
	@$(BIN)/python -m jobs.demo $(if $(DATA),'$(DATA)') --out '$(OUT)'

serve: $(VENV)/.installed ## answer HTTP requests with the best model in OUT
	@$(BIN)/leukoray serve '$(OUT)/models' --port $(PORT)

# Unit tests share the cores; what starts clusters of its own comes after them, one by one. The floor of coverage holds
# for both together.
test: $(VENV)/.installed-test ## the whole test suite; ARGS='tests/unit -k splits' a part; COVERAGE=1 says what of the code it ran
	@infra/packages.sh $(PACKAGES)
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	@rm -f '$(COVERAGE_FILE)'
	$(BIN)/python -m pytest tests/unit -n auto --maxprocesses 4 --dist worksteal $(MEASURED); unit=$$?; \
	$(BIN)/python -m pytest --ignore tests/unit $(MEASURED) && exit $$unit
	$(if $(COVERAGE),$(BIN)/coverage report --skip-covered)
endif

test-infra: $(VENV)/.installed-test ## Slurm and the images for real, as root; installs their packages; PART=slurm or PART=images alone
	@infra/packages.sh $(or $(PART),slurm images)
	$(BIN)/python -m pytest $(patsubst %,tests/infra/test_%.py,$(or $(PART),slurm images)) $(ARGS)

lint: $(VENV)/.installed-test ## rules, formatting, types, the order of the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-test ## put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

image: ## an image by docker, podman or buildah: IMAGE=score-serve or train, BASE=another base
	@infra/images/build.sh $(IMAGE)

lock: $(VENV)/.installed-test ## the locks of the images anew, from pyproject.toml
	@infra/images/lock.sh $(BIN)/uv

reference: $(VENV)/.installed-test ## docs/reference.md anew, from the options, schemas and codes in the code
	@$(BIN)/python -m tests.reference

bench: $(VENV)/.installed-bench ## speed against the usual ways and against the limit, as ratios
	$(BIN)/python -m tests.benchmarks.bench $(ARGS)

bench-score: $(VENV)/.installed-bench ## batch scoring alone, at length
	$(BIN)/python -m tests.benchmarks.bench_score $(ARGS)

bench-train: $(VENV)/.installed-bench ## training beside torchrun's DDP and Lightning: hours; ARGS='--sizes 224x224 --workers 2' a part
	$(BIN)/python -m tests.benchmarks.bench_train $(ARGS)

bench-serve: $(VENV)/.installed-bench ## the endpoint beside FastAPI, LitServe and the usual Serve template
	$(BIN)/python -m tests.benchmarks.bench_serve $(ARGS)

mutants: $(VENV)/.installed-test ## break the code LIMIT times a room and count what its tests notice: hours; ROOM='lock leaks'
	$(BIN)/python -m tests.mutants $(ROOM) --limit $(LIMIT) --seed $(SEED)

fuzz: $(VENV)/.installed-fuzz ## mutate images and archives for MINUTES, SEED draws; ARGS='png tar' only these; a finding is exit 1
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) --seed $(SEED) $(ARGS)

soak: $(VENV)/.installed-test ## mixed load and changes of the model on the endpoint for MINUTES; a failed request or a leak is exit 1
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(ARGS)

chaos: $(VENV)/.installed-test ## kill a scoring run N times and compare it with an unbroken one
	$(BIN)/python -m tests.system.chaos $(N)

test-lowest: $(VENV)/.installed ## unit tests with the lowest versions that pyproject.toml allows; ARGS='tests/unit -k export' a part
	infra/bounds.sh lowest '$(SCRATCH)/lowest' $(BIN)/uv
	PYTHONPATH='$(CURDIR)' '$(SCRATCH)/lowest/bin/python' -m pytest -p no:cacheprovider $(or $(ARGS),tests/unit)

test-newest: $(VENV)/.installed ## the same with the newest versions that there are
	infra/bounds.sh newest '$(SCRATCH)/newest' $(BIN)/uv
	PYTHONPATH='$(CURDIR)' '$(SCRATCH)/newest/bin/python' -m pytest -p no:cacheprovider $(or $(ARGS),tests/unit)

audit: $(VENV)/.installed ## known vulnerabilities of what is installed and of the images' locks; says NOT CHECKED where none can be asked
	@$(BIN)/python infra/audit.py $(abspath $(VENV)) $(BIN)/uvx

sbom: $(VENV)/.installed ## bills of materials (CycloneDX 1.6) of what is installed and of the images' locks, into OUT/sbom
	@infra/sbom.sh $(abspath $(VENV)) $(abspath $(OUT))/sbom $(BIN)/uvx

clean: ## remove VENV, OUT and what the checks left
	rm -rf '$(VENV)' '$(OUT)' .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
