# make demo [KEEP=1] | make test | make test-rest | make test-all | make coverage | make serve STUDIES=<folder or DICOMweb URL> | make pacs | make bench-adapt [QUICK=1] | make bench-gate [SEED=n] | make bench-clicks | make bench-whole-organ | make bench-volumes [QUICK=1] | make bench-fseft [QUICK=1] | make bench-throughput | make bench-scale [PART=latency|processes] | make bench-trust [SOAK=minutes] | make bench-archive | make lint | make docs | make wheel | make advisories | make sbom | make sample-data | make clean
SHELL := /bin/sh
STUDIES ?=
HOST ?= 127.0.0.1
PORT ?= 8000
LABELS ?=
SEED ?= 0
BLACK_BOX ?=
WEIGHTS ?=
REMOTE ?=
ADAPTERS ?=
USERS ?=
WORKLIST ?=
CONFIG ?=
ROOT_PATH ?=

# An empty entry in PYTHONPATH would make Python import modules from the current folder.
unexport PYTHONPATH

PY := .venv/bin/python
# One worker per core with one thread each. Tests that share a server, a PACS or a fixture run in one worker.
WORKERS ?= $(shell getconf _NPROCESSORS_ONLN)
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadgroup
# Markers of the tests that `make test` leaves out; tests/support/marks.py sets them.
NOT_FAST := slow or server or pacs or browser
# torch is installed first, because sam2, which MONAI Label needs, imports it during its build. We use none of its CUDA code.
PIP := SAM2_BUILD_CUDA=0 PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install -c constraints.txt

.PHONY: help demo test test-rest test-all coverage serve pacs bench-adapt bench-gate bench-clicks bench-whole-organ bench-volumes bench-fseft bench-throughput bench-scale bench-trust bench-archive lint docs wheel advisories sbom sample-data clean

help:
	@sed -n 1p Makefile

.venv/installed: setup.cfg constraints.txt
	@found=; for p in python3 python3.12 python3.11 python3.10; do \
	  if $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; \
	  then found=$$p; break; fi; done; \
	if [ -z "$$found" ]; then \
	  echo "No Python 3.10, 3.11 or 3.12 with venv was found. Run this, then try again:"; \
	  echo "    sudo apt-get update && sudo apt-get install -y python3 python3-venv"; \
	  echo "(If the system's Python is newer than 3.12, install python3.12 and python3.12-venv.)"; exit 1; fi; \
	if [ ! -x $(PY) ]; then echo "==> Making .venv with $$($$found --version)"; $$found -m venv .venv; fi
	@echo "==> Installing. PyTorch and its libraries take about 3 GB to download and 9 GB on disk. This takes 3 to 15 minutes."
	@echo "==> 1 of 3: pip and setuptools"; $(PIP) -q --upgrade pip setuptools setuptools-scm
	@echo "==> 2 of 3: PyTorch"; $(PIP) torch torchvision numpy
	@echo "==> 3 of 3: MONAI Label, this project, and its tests"; $(PIP) --no-build-isolation -e '.[dev]'
	@touch $@
	@echo "==> Installed."

demo: .venv/installed
	@.venv/bin/baps demo --seed $(SEED) $(if $(KEEP),--keep)

test: .venv/installed
	@$(PYTEST) -m "not ($(NOT_FAST))"

# The tests that `make test` leaves out: servers, PACS, browsers, kills, the demo, long fits.
test-rest: .venv/installed
	@$(PYTEST) -m "$(NOT_FAST)"

test-all: .venv/installed
	@$(PYTEST)

# Coverage of all tests, including the processes that they start.
coverage: .venv/installed
	@$(PYTEST) --cov --cov-report term:skip-covered

serve: .venv/installed
	@if [ -z "$(STUDIES)" ]; then \
	  echo "Name the images: make serve STUDIES=<folder or DICOMweb URL> [PORT=8000] [LABELS=liver,spleen]"; exit 1; fi
	@exec .venv/bin/baps serve "$(STUDIES)" --host "$(HOST)" --port "$(PORT)" --labels "$(LABELS)" \
	  --black-box "$(BLACK_BOX)" --weights "$(WEIGHTS)" --remote "$(REMOTE)" --adapters "$(ADAPTERS)" \
	  --users "$(USERS)" --worklist "$(WORKLIST)" --config "$(CONFIG)" --root-path "$(ROOT_PATH)"

pacs: .venv/installed
	@exec $(PY) -m demo.pacs --port $(PORT) $(if $(OPEN),--open)

# Needs the real images beside the repository, see benchmarks/real_data.py.
bench-adapt: .venv/installed
	@$(PY) -m benchmarks.adaptation.adapt $(if $(QUICK),--quick,--publish)
	@$(if $(QUICK),,$(PY) -m benchmarks.adaptation.weekly_training)

# What the gate publishes, serves and withdraws, simulated with its own code; some minutes. SEED=1 is another simulation.
bench-gate: .venv/installed
	@$(PY) -m benchmarks.adaptation.gate --seed $(SEED)

bench-clicks: .venv/installed
	@$(PY) -m benchmarks.interactive.clicks

bench-whole-organ: .venv/installed
	@$(PY) -m benchmarks.interactive.whole_organs

bench-volumes: .venv/installed
	@$(PY) -m benchmarks.adaptation.volumes $(if $(QUICK),--quick,--publish)

bench-fseft: .venv/installed
	@$(PY) -m benchmarks.fewshot.few_shot $(if $(QUICK),--quick,--publish)

bench-throughput: .venv/installed
	@$(PY) -m benchmarks.performance.throughput

# Images per second of 1, 2, 4 and 8 replicas; three minutes. PART=latency or PART=processes is one half.
bench-scale: .venv/installed
	@$(PY) -m benchmarks.performance.scale --part $(or $(PART),all)

# Takes half an hour. SOAK=60 runs the soak for an hour instead of three minutes.
bench-trust: .venv/installed
	@$(PY) -m stress.run --publish $(if $(SOAK),--soak $(SOAK))

# A simulated PACS with 100,000 series. Takes ten minutes.
bench-archive: .venv/installed
	@$(PY) -m benchmarks.performance.archive

# Layers whose public functions have complete docstrings.
DOCUMENTED := $(addprefix apps/baps_app/baps/,api.py adapters annotations blackbox evaluation fseft imaging inference io prompts \
	registry site training utils)

lint: .venv/installed
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy && .venv/bin/lint-imports && \
	.venv/bin/pydoclint -q $(DOCUMENTED) && \
	$(PY) -m ruff check --preview --select D,DOC501 --ignore D105,D107 $(DOCUMENTED)

# Builds the guides and the API reference as a site in build/site. A broken link is an error.
docs: .venv/installed
	@PYTHONPATH=apps/baps_app NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "==> build/site/index.html"

.venv-tools/installed: deploy/tools.txt | .venv/installed
	@$(PY) -m venv .venv-tools && .venv-tools/bin/python -m pip install -q --disable-pip-version-check -r deploy/tools.txt
	@touch $@

# The real nninteractive-server, for tests. Packages that .venv has, such as torch, are used from there: 75 MB instead of 5 GB.
.venv-nninteractive/installed: tests/support/nninteractive_server.txt | .venv/installed
	@$(PY) -m venv .venv-nninteractive
	@$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(.venv-nninteractive/bin/python -c \
	  'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth"
	@.venv-nninteractive/bin/python -m pip install -q --disable-pip-version-check -r tests/support/nninteractive_server.txt
	@touch $@

# Lists known advisories on pinned packages that deploy/advisories.ini does not list.
advisories: .venv-tools/installed
	@$(PY) deploy/advisories.py

# Writes a CycloneDX list of the installed packages.
sbom: .venv-tools/installed
	@mkdir -p build
	@.venv-tools/bin/cyclonedx-py environment --of JSON --output-reproducible -o build/sbom.json $(PY)
	@echo "==> build/sbom.json"

# Builds the wheel and tests its installation, the core and the server. Takes some minutes.
wheel: .venv/installed
	@.ci/wheel

sample-data: .venv/installed
	@$(PY) -m tools.sample_data

clean:
	rm -rf .venv .venv-tools .venv-nninteractive build demo-output .coverage .coverage.*
