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
GRID ?= table2
SEEDS ?=
EPOCHS ?=
SET ?=
BENCH ?=
DATASET ?=
SOURCE ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(abspath $(BIN)):$(PATH)
export VIDEO AUDIO OUT MODEL SET

.DEFAULT_GOAL := help
