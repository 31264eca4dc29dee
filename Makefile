# `make` lists the commands. DATA=NAME selects a preset of pipelines/presets/; without it params.yaml is used as it is.

# An interpreter to make .venv with, in place of the first of PYTHONS that works. A .venv that exists is kept as it is.
PYTHON ?=
PYTHONS := python3.13 python3.12 python3.11
DATA ?=
METADATA ?=
CRON ?= 0 3 * * *
CLIP ?=
SNR ?= 0
VIDEO ?=
AUDIO ?=
OUT ?=
MODEL ?=
HOP ?=
SEED ?= 0
SECONDS ?= 60
PORT ?= 5000
SERVE_PORT ?= 8000
GRID ?= table2
SEEDS ?=
EPOCHS ?=
SET ?=
BENCH ?=
CHECKPOINT ?=
METHOD ?=
DATASET ?=
SOURCE ?=
TO ?=
REASON ?=
CLIPS ?=
SERVICE ?=
N ?= 64
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(abspath $(BIN)):$(PATH)
VERBATIM := CHECKPOINT VIDEO AUDIO OUT MODEL SET REASON CLIPS
export $(VERBATIM)
# A dollar sign in a file name is no variable of make.
$(foreach name,$(VERBATIM),$(eval override $(name) := $$(value $(name))))

.DEFAULT_GOAL := help
.PHONY: help setup repro data check test test-slow bench profile listen predict serve demo export report train evaluate sweep compare retrain rollback new-clips set-apart schedule up status logs down ui lint lock clean

help: ## Print this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# Sets $$python. To be on PATH is not enough: a pyenv shim fails for a version that is not activated, and Debian has
# ensurepip, without which venv fails halfway, in a package of its own.
SUPPORTED := import sys; sys.exit("python%d.%d" % sys.version_info[:2] not in "$(PYTHONS)".split())
define FIND_PYTHON
hint=; for python in $(or $(PYTHON),$(PYTHONS)); do \
  "$$python" -c 'import venv, ensurepip; $(SUPPORTED)' 2>/dev/null && break; \
  "$$python" -c '$(SUPPORTED)' 2>/dev/null && \
    hint="$$hint; $$python has no ensurepip: on Debian and Ubuntu, apt install $${python##*/}-venv"; \
  python=; \
done; \
test -n "$$python" || { \
  echo "make: $(if $(PYTHON),PYTHON=$(PYTHON) cannot,none of $(PYTHONS) can) be used:" \
    "install Python 3.13, 3.12 or 3.11, or say PYTHON=/path/to/python3.11$$hint" >&2; \
  exit 1; \
}
endef

setup: $(READY) ## Create .venv with the exact versions of requirements.lock

$(READY): requirements.lock pyproject.toml
	@test -x $(BIN)/python || { $(FIND_PYTHON); "$$python" -m venv $(VENV); }
	@echo "Installing requirements.lock into $(VENV) ($$($(BIN)/python -V); some minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

repro: setup ## Bring the whole pipeline up to date and print the test metrics
	@python -m pipelines.flows reproduce --data "$(DATA)"

data: setup ## Import AVSBench (DATASET=s4|ms3|avss SOURCE="folder, archives or URLs")
	@python -m pipelines.flows data --data "$(DATASET)" --source "$$SOURCE"

check: setup ## Report the faults of the data set, or of a published list of clips (METADATA=path.csv)
	@python -m pipelines.check --data "$(DATA)" --metadata "$(METADATA)"

test: setup ## Run the fast tests (no network)
	@python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: setup ## Run the end-to-end and fault tests
	@python -m pytest -m slow

bench: setup .cache/bench/.ready ## Measure the speed of the parts, and compare with torchvggish (BENCH=features for one part)
	@PYTHONPATH=.cache/bench python tests/benchmarks $(BENCH)

profile: setup ## Trace some training steps, and print their ten most expensive operations
	@python -m pipelines.profile --data "$(DATA)"

.cache/bench/.ready: tests/benchmarks/requirements.txt
	@rm -rf $(@D) && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) --requirement $<
	@touch $@

listen: setup ## Write a noisy clip as sound and spectrogram (CLIP=test-00004 SNR=5, or SNR=clean)
	@python -m pipelines.listen --data "$(DATA)" --clip="$(CLIP)" --snr="$(SNR)"

predict: setup ## Segment your own videos (VIDEO="clip.mp4 more/*.mp4", AUDIO=sound.wav OUT=folder MODEL=champion|path|run)
	@python -m pipelines.predict --data "$(DATA)" --audio="$$AUDIO" --out="$$OUT" --model="$$MODEL" --hop="$(HOP)" -- "$$VIDEO"

serve: setup ## Serve a page and a JSON API for your own videos on 127.0.0.1 (SERVE_PORT=8000 MODEL=champion|path|run)
	@python -m pipelines.serve --data "$(DATA)" --port "$(SERVE_PORT)" --model="$$MODEL"

demo: setup ## Compose a video of known masks and segment it (SECONDS=60 SEED=0)
	@python -m pipelines.demo --data "$(DATA)" --seconds "$(SECONDS)" --seed "$(SEED)" --model="$$MODEL"

export: setup ## Write a model as a folder to share, with ONNX and torch.export graphs (MODEL=champion|path|run OUT=folder)
	@python -m pipelines.export --data "$(DATA)" --model="$$MODEL" --out="$$OUT"

report: setup ## Write the results as one HTML page with playable clips: report.html
	@python -m pipelines.report --data "$(DATA)"

train: setup ## Train and evaluate with some settings changed (SET="model.codebook_size=64 epochs=4")
	@python -m pipelines.flows train --data "$(DATA)" --set="$$SET"

evaluate: setup ## Evaluate a published checkpoint (CHECKPOINT=MS3_best.pth METHOD=avsegformer DATA=ms3)
	@python -m pipelines.flows evaluate --data "$(DATA)" --method "$(METHOD)" --checkpoint="$$CHECKPOINT"

sweep: setup ## Compare the rows of a grid of ablations (GRID=table2 SEEDS=3 EPOCHS=2 SET="image_size=96")
	@python -m pipelines.flows sweep --data "$(DATA)" --grid="$(GRID)" --seeds="$(SEEDS)" --epochs="$(EPOCHS)" --set="$$SET"

compare: setup ## Train and compare all methods with the same data, backbone and budget (SEEDS=3 EPOCHS=2)
	@python -m pipelines.flows sweep --data "$(DATA)" --grid=methods --seeds="$(or $(SEEDS),3)" --epochs="$(EPOCHS)" --set="$$SET"

retrain: setup ## Retrain if anything changed; a better model becomes the champion
	@python -m pipelines.flows retrain --data "$(DATA)"

rollback: setup ## Give the alias champion back to the version before (TO=version REASON="why")
	@python -m pipelines.rollback --data "$(DATA)" --to "$(TO)" --reason "$$REASON"

new-clips: setup ## Compose a batch of new training clips for the next retraining (N=64; toy and stamps)
	@python -m pipelines.arrivals --data "$(DATA)" --clips "$(N)"

set-apart: setup ## Move accepted clips to quarantine (CLIPS="UID ..." REASON="why"; default: all new to the champion)
	@python -m pipelines.set_apart --data "$(DATA)" --clips="$$CLIPS" --reason "$$REASON"

schedule: setup ## Retrain on a cron schedule until Ctrl-C (CRON="0 3 * * *", UTC)
	@python -m pipelines.flows schedule --data "$(DATA)" --cron "$(CRON)"

up: setup ## Start Prefect, MLflow and the retraining schedule in the background
	@python -m pipelines.services up

status: setup ## Show the services and their health
	@python -m pipelines.services status

logs: setup ## Print the end of the services' logs (SERVICE=prefect|mlflow|worker|watch)
	@python -m pipelines.services logs $(SERVICE)

down: setup ## Stop the services
	@python -m pipelines.services down

ui: setup ## Serve the MLflow dashboard on 127.0.0.1 (PORT=5000)
	@echo "MLflow: http://127.0.0.1:$(PORT)/#/experiments?workflowType=machine_learning  (Ctrl-C stops it)"
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --host 127.0.0.1 --port $(PORT) --workers 1 --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}"

lint: setup ## Check style and types
	@ruff check . && ruff format --check . && mypy

# Made with the oldest Python, since a release that has dropped it could not be installed there; then see that pip takes
# the pins under the newer ones too. A package that only some of them need, or in another version, gets its line by hand,
# with a marker (NAME==1.2; python_version >= "3.12"), and --exclude NAME below. Lines with a marker are kept.
# The CUDA libraries are left to torch, which names their versions: a build for the CPU needs none of them.
lock: ## Rewrite requirements.lock from pyproject.toml
	@rm -rf .cache/lock && $(or $(PYTHON),$(lastword $(PYTHONS))) -m venv .cache/lock
	@.cache/lock/bin/python -m pip install --quiet '.[pipeline,export,dev]'
	@{ sed -n '/^#/p' requirements.lock; \
	   .cache/lock/bin/python -m pip freeze --exclude qdformer --exclude setuptools \
	     | sed -E 's/\+[a-z0-9.]*$$//; /^(cuda-|nvidia-[^m]|triton==)/d'; \
	   sed -n '/^[^#].*;/p' requirements.lock; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock && rm -rf .cache/lock build

clean: ## Remove all computed files (keeps .venv, downloads and the MLflow record)
	@rm -rf data models workspaces sweeps listen predictions exported report.html reports/*
