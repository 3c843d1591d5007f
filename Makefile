# `make` alone explains every target. A text after `##` on a rule's line is its sentence in that help, and lines below
# it that open with `##` are its variables.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?=
RUNS ?= runs
PORT ?= 6006

PY := .venv/bin/python
SOURCES := benchmarks callbacks datamodules experiments lightning_modules losses tests

# Values reach a program as they were written: `value` keeps make from expanding $ in them, the quotes keep the shell
# from splitting paths and from expanding brackets.
quote = '$(subst ','\'',$1)'
path = $(if $(value $1),$(call quote,$(value $1)))
each = $(foreach item,$(value $1),$(call quote,$(item)))
option = $(if $(value $2),$1 $(call quote,$(value $2)))
switch = $(if $(filter-out 0 no false,$(value $2)),$1)

# --data and --seeds take lists, so they stand last.
study_options = $(call option,--workers,WORKERS) $(call option,--runs,OUT) $(call option,--storage,STORAGE) \
  $(call switch,--retry,RETRY) $(call switch,--tiny,TINY) $(if $(value DATA),--data $(call each,DATA)) \
  $(if $(value SEEDS),--seeds $(call each,SEEDS))
study_folder = $(or $(value OUT),runs/studies/$(basename $(notdir $(value STUDY)))$(if $(call switch,-tiny,TINY),-tiny))

# $(call need,TARGET,VARIABLES,EXAMPLE) stops before anything is built where none of the variables has a value.
need = $(if $(filter $1,$(MAKECMDGOALS)),$(if $(strip $(foreach name,$2,$(value $(name)))),,$(error \
  make $1 needs $(firstword $2)=, for example: $3)))

$(call need,train,EXP RESUME,make train EXP=op4ksr/mini)
$(call need,evaluate,CKPT,make evaluate CKPT=runs/op4ksr/mini/checkpoints/last.ckpt DATA=bundled)
$(call need,evaluate,DATA,make evaluate CKPT=runs/op4ksr/mini/checkpoints/last.ckpt DATA=bundled)
$(call need,upscale,CKPT,make upscale CKPT=runs/op4ksr/mini/checkpoints/last.ckpt IN=photo.jpg OUT=large.png)
$(call need,upscale,IN,make upscale CKPT=runs/op4ksr/mini/checkpoints/last.ckpt IN=photo.jpg OUT=large.png)
$(call need,upscale,OUT,make upscale CKPT=runs/op4ksr/mini/checkpoints/last.ckpt IN=photo.jpg OUT=large.png)
$(call need,curate,RAW,make curate RAW=photographs OUT=data/curated)
$(call need,curate,OUT,make curate RAW=photographs OUT=data/curated)
$(call need,shards,IN,make shards IN=data/curated OUT=data/4ksr-train)
$(call need,shards,OUT,make shards IN=data/curated OUT=data/4ksr-train)
$(call need,shards-check,IN,make shards-check IN=data/4ksr-train)
$(call need,export,CKPT,make export CKPT=runs/rt4ksr/s_x2_mini/checkpoints/last.ckpt)
$(call need,study,STUDY,make study STUDY=artifact)
$(call need,sweep,STUDY,make sweep STUDY=search_lr_l_ap)
$(call need,compare,STUDY,make compare STUDY=artifact)
$(call need,sigma,EXP,make sigma EXP=op4ksr/mini_lora)
$(call need,prompt,FLUX,make prompt FLUX=weights/FLUX.1-dev OUT=weights/prompt.safetensors)
$(call need,prompt,OUT,make prompt FLUX=weights/FLUX.1-dev OUT=weights/prompt.safetensors)
$(call need,bench,BENCH,make bench BENCH=degradations)

.PHONY: help install demo curate shards shards-check train study sweep compare board evaluate upscale export sigma prompt options bench test test-slow lint format lock clean

help: ## Explain every target (the default)
	@echo 'make TARGET [VARIABLE=value ...]'
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "\n  %-12s %s\n", $$1, $$2 } /^##   / { print "             " substr($$0, 4) }' Makefile
	@echo
	@echo 'A path with spaces goes in quotes: IN="my photo.jpg". SET holds overrides, split at spaces: SET="seed=1 data.crop=192".'
	@echo 'The programs exit with 2 for wrong input and 1 where some files of a batch failed; make turns both into its own 2.'

install: .venv/.installed ## Create .venv and install what requirements.lock pins; skipped when done, run by all below
##   PYTHON=python3.12   interpreter of a new .venv, 3.11 or 3.12 (default: the first of python3.11, python3.12, python3 that works)

demo: install ## Train a small OP4KSR student from nothing, measure it and upscale a photograph
##   DEMO=runs/demo      folder of the demo's runs, table and pictures
##   SEED=0              seed of its trainings
##   SET="a.b=1"         overrides for all of its trainings
	$(PY) -m experiments.demo $(call each,SET) $(call option,--folder,DEMO) $(call option,--seed,SEED)

curate: install ## Choose the photographs that are fit for training, with a reason for every other one
##   RAW=folder          photographs, in folders of any depth (needed)
##   OUT=data/curated    for the table, the report page and the list of kept files (needed); goes on where it was stopped
##   CONFIG=photos4k     bounds and models: name below experiments/curation/, or a YAML file
##   SET="a.b=1"         overrides, such as preliminary.short_side=1440; new bounds reuse all scores
##   ENGINE=ray          on Ray, one machine or a cluster: .venv/bin/pip install -e ".[ray]" (default: local)
##   WORKERS=8           processes (default: one per core)
	$(PY) -m experiments.curate $(call path,RAW) $(call path,OUT) $(call each,SET) $(call option,--config,CONFIG) \
	  $(call option,--engine,ENGINE) $(call option,--workers,WORKERS)

shards: install ## Pack curated photographs, or any folder of images, into tar files for training
##   IN=data/curated     what make curate wrote, or a folder of images, each of which is decoded first (needed)
##   OUT=data/4ksr-train folder of the shards, for data.train= (needed); goes on where it was stopped
##   SHARD_MB=1000       size of a tar file
	$(PY) -m experiments.shards $(call path,IN) $(call path,OUT) $(call option,--shard-mb,SHARD_MB)

shards-check: install ## Read all shards and compare every byte with its checksum
##   IN=data/4ksr-train  folder or address of the shards (needed)
##   WORKERS=8           shards read at the same time, in threads (default: one per core)
	$(PY) -m experiments.shards_check $(call path,IN) $(call option,--workers,WORKERS)

train: install ## Train one experiment; the run goes to runs/<name>
##   EXP=op4ksr/mini     name below experiments/, or a YAML file; needed unless RESUME= is given
##   SET="a.b=1 c=2"     overrides of single options, see `make options`
##   RESUME=last.ckpt    continue that run in every respect: weights, optimiser, place in the data
##   INIT=other.ckpt     a new run that starts from the weights of a checkpoint
##   TINY=1              shrink the experiment to seconds, to see whether it runs
	$(PY) -m experiments.train $(call path,EXP) $(call each,SET) \
	  $(call option,--resume,RESUME) $(call option,--init,INIT) $(call switch,--tiny,TINY)

study: install ## Train every arm of a study with every seed and compare them; goes on where it was stopped
##   STUDY=artifact      name below experiments/studies/, or a YAML file (needed)
##   WORKERS=2           runs at the same time on this machine (default: 1); the same command elsewhere joins
##   OUT=folder          for the runs and the comparison (default: runs/studies/<study>); shared by all machines
##   STORAGE=url         Optuna storage such as postgresql://host/name (default: a journal file in OUT)
##   SEEDS="0 1 2"       seeds in place of the study's own
##   DATA="a b"          test sets in place of the study's own, as evaluate takes them
##   SET="a.b=1"         overrides for all runs
##   RETRY=1             run failed trials again
##   TINY=1              shrink every run to seconds
	$(PY) -m experiments.study $(call path,STUDY) $(call each,SET) $(study_options)

sweep: install ## Search for the best values of a study's search space; goes on where it was stopped
##   STUDY=search_lr_l_ap  a study with search.space (needed); further variables: those of study
	$(PY) -m experiments.study $(call path,STUDY) $(call each,SET) --sweep $(study_options)

compare: install ## Compare a study's runs as far as they are finished: table, figures and a page with pictures
##   STUDY=artifact      name below experiments/studies/, or a YAML file (needed)
##   OUT=folder          where its runs are (default: runs/studies/<study>)
##   DATA="a b"          test sets in place of the study's own
##   STORAGE=url         as it was given to study
	$(PY) -m experiments.compare $(call path,STUDY) $(call each,DATA) $(call option,--runs,OUT) \
	  $(call option,--storage,STORAGE) $(call switch,--tiny,TINY)

board: install ## Show runs in TensorBoard
##   STUDY=artifact      the runs of a study, or
##   RUNS=runs           a folder of runs
##   PORT=6006           http://localhost:PORT
	$(PY) -m tensorboard.main --logdir $(if $(value STUDY),$(call quote,$(study_folder)),$(call path,RUNS)) \
	  --port $(call path,PORT)

evaluate: install ## Measure a checkpoint against bicubic on a test set
##   CKPT=last.ckpt      checkpoint of a run, or a released RT4KSR file (needed)
##   DATA=folder         HR/ beside LR*/, a plain folder of HR images, bundled, or bundled_large (needed)
##   OUT=folder          for results.md and results.json (default: <run>/evaluate/<data>, runs/evaluate/<file>/<data>)
##   SET="a.b=1"         overrides of single options
##   ARGS="--crop-border 0"  px that PSNR and SSIM leave out at each side (default: the scale) (.venv/bin/python -m experiments.evaluate --help)
##   ARGS="--pictures"   save the middle of every output as PNG, too, in pictures/
	$(PY) -m experiments.evaluate $(call path,CKPT) $(call path,DATA) $(call each,SET) \
	  $(call option,--out,OUT) $(call each,ARGS)

upscale: install ## Upscale an image, a folder of images or frames, or a video
##   CKPT=last.ckpt      checkpoint of a run, or a released RT4KSR file (needed)
##   IN=photo.jpg        PNG, JPEG or WebP, a folder of them, or a video such as clip.mp4 (needed)
##   OUT=large.png       folder, or for a single image or video a file (needed)
##   SCALE=4             factor (default: the one the model was trained for; RT4KSR has no other)
##   SET="a.b=1"         overrides of single options
##   ARGS="--format jpg" further options: --skip-existing goes on after a stop; --half --cuda-graph --compile for RT4KSR;
##                       --codec --crf --preset for videos (.venv/bin/python -m experiments.upscale --help)
	$(PY) -m experiments.upscale $(call path,CKPT) $(call path,IN) $(call path,OUT) $(call each,SET) \
	  $(call option,--scale,SCALE) $(call each,ARGS)

export: install ## Write a trained network as ONNX for other programs, checked against PyTorch first
##   CKPT=last.ckpt      checkpoint of a real_time_cnn run, or a released RT4KSR file (needed)
##   FORMAT=onnx         the only one so far; its packages: .venv/bin/pip install -e ".[onnx]"
##   OUT=net.onnx        file (default: export/ in the run's folder; runs/export/ for a released file)
##   HALF=1              fp16: weights, computation, lr and sr
	$(PY) -m experiments.export $(call path,CKPT) $(call option,--format,FORMAT) $(call option,--out,OUT) \
	  $(call switch,--half,HALF)

sigma: install ## Find the noise level at which a student enters, by matching signal-to-noise ratios
##   EXP=op4ksr/mini_lora  an experiment of a student, for its data and codec (needed)
##   SET="a.b=1"         overrides of single options
##   ARGS="--crops 256"  training crops to look at
	$(PY) -m experiments.sigma $(call path,EXP) $(call each,SET) $(call switch,--tiny,TINY) $(call each,ARGS)

prompt: install ## Write the fixed prompt's embeddings with FLUX's own text encoders
##   FLUX=folder         local FLUX.1 in diffusers format (needed)
##   OUT=prompt.safetensors  file to write, for transformer.prompt (needed)
##   TEXT="a photo"      the prompt (default: S3Diff's positive one)
	$(PY) -m experiments.prompt $(call path,FLUX) $(call path,OUT) $(call option,--text,TEXT) $(call each,ARGS)

options: install ## Print every option of an experiment with its type, default and sentence
	@$(PY) -m experiments.describe

bench: install ## Time a part and print a table with the machine's name
##   BENCH=degradations  module below benchmarks/ (needed)
##   ARGS="--size 256"   its own options
	$(PY) -m benchmarks.$(call path,BENCH) $(call each,ARGS)

test: install ## Run the tests, except those that take minutes
##   JOBS=2              test files at the same time (default: 2)
##   ARGS="-k comb"      further options of pytest; folder SR_SHARED (default ../shared) holds the real test data
	$(PY) -m pytest --numprocesses $(or $(call path,JOBS),2) --dist loadfile $(call each,ARGS)

test-slow: install ## Run the tests that take minutes
##   ARGS="-k resume"    further options of pytest
	$(PY) -m pytest -m slow $(call each,ARGS)

lint: install ## Check style (ruff) and types (mypy)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: install ## Repair what ruff can repair
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lock: install ## Write requirements.lock anew from .venv; for newer versions, `pip install -U -e ".[dev]"` in it first
	@{ sed -n '/^#/p' requirements.lock && $(PY) -m pip freeze --all --exclude pip --exclude wheel --exclude-editable | \
	  grep -viE '^(nvidia-|cuda-|triton==|sr4k)'; } > requirements.lock.new
	@if grep -n '@ ' requirements.lock.new; then rm requirements.lock.new; \
	  echo 'these packages came from an address: install them by their names first' >&2; exit 2; fi
	@mv requirements.lock.new requirements.lock

clean: ## Remove caches and build output; runs/ and .venv stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find $(SOURCES) -type d -name __pycache__ -prune -exec rm -rf {} +

# The mark .unfinished stands from before the first file until all packages lie there, so what an interrupted
# installation left behind is built anew; a finished .venv is brought up to date in place.
.venv/.installed: requirements.lock setup.cfg pyproject.toml
	@if [ -e .venv/.unfinished ] || ! .venv/bin/python -c '$(check_python); import pip' 2>/dev/null; then \
	  found=; for python in $(or $(call path,PYTHON),python3.11 python3.12 python3); do \
	    "$$python" -c '$(check_python); import ensurepip, venv' 2>/dev/null && found=$$python && break; \
	  done; \
	  if [ -z "$$found" ]; then echo '$(no_python)' >&2; exit 2; fi; \
	  echo "Creating .venv with $$found"; \
	  rm -rf .venv && mkdir .venv && touch .venv/.unfinished && "$$found" -m venv .venv; \
	fi
	@touch .venv/.unfinished
	$(PY) -m pip install -r requirements.lock
	$(PY) -m pip install --no-deps -e .
	@touch $@ && rm .venv/.unfinished

check_python := import sys; sys.version_info[:2] in ((3, 11), (3, 12)) or sys.exit(1)
no_python = No working Python 3.11 or 3.12 with the modules venv and ensurepip found (tried: \
  $(or $(value PYTHON),python3.11 python3.12 python3)): install one, or name it, for example: make install PYTHON=/usr/bin/python3.12
