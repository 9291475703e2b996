# Every target sets up the environment it needs. `make help` lists the targets and variables.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help pipeline tokenizer pretrain finetune generate score report runs doctor test test-fast chaos bench lint typecheck \
  requirements clean .venv tools .venv-bench

PYTHON ?= python3
LAUNCH ?= python
MODEL  ?= gpt mlm
PROMPT ?= def read_lines(path):
TYPED_PROMPT := $(filter-out file,$(origin PROMPT))
DATA   ?=
BUDGET ?=
CONFIG ?=
RUN    ?=
ONLY   ?=
ARGS   ?=
WORKERS ?= 2

# An environment is up to date when it holds a copy of exactly the requirements it was built from; then these are empty.
READY := $(shell cmp -s requirements.txt .venv/.ready || echo .venv)
TOOLS := $(or $(READY:.venv=tools),$(shell cmp -s requirements-dev.txt .venv/.ready-dev || echo tools))
PEERS := $(or $(READY:.venv=.venv-bench),$(shell cmp -s benchmarks/requirements.txt .venv-bench/.ready || echo .venv-bench))
# What the type checker covers: a folder joins when it is clean.
TYPED := mini_llm tokenizer finetune generate scoring
export NANOGPT NANOCHAT
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# The text that the pretrained models were trained on. It is part of their runs' names, except for the built-in corpus.
ON     ?=
# What is typed reaches the commands unchanged: make expands no $$ in it, and recipes read it from the environment, which
# also holds line breaks and quotation marks.
$(foreach name,PROMPT DATA BUDGET CONFIG RUN ON ARGS,$(eval override $(name) := $$(value $(name)))$(eval export $(name)))

given  = $(if $(strip $($(1))),$(2)="$$$(1)")
config = $(if $(strip $(CONFIG)),"$$CONFIG")
# run=NAME rather than --run NAME, which torchrun would read as an abbreviation of one of its own options. run=null would
# stand for no name.
named  = $(if $(strip $(RUN)),$(if $(filter null,$(RUN)),run='"null"',run="$$RUN"))
# Of several models ($$1 $$2 ...), each has a run of its own: RUN-gpt, RUN-mlm.
each   = $(if $(filter null,$(RUN)),$(named),$(if $(strip $(RUN)),run="$$RUN$${2:+-$$model}"))
common = $(config) $(call given,DATA,--data) $(call given,BUDGET,--budget) $(each)
# ARGS as the bash array `args`. Only spaces and quotation marks are special in it, not $$ or *.
split  = words=$$(python -m mini_llm.engine.run.words "$$ARGS") && eval "args=($$words)"
args   = "$${args[@]}"

quoted  = '$(subst ','\'',$(1))'
corpus  = $(or $(ON),$(if $(filter pipeline,$(MAKECMDGOALS)),$(DATA)))
# Names of the runs of models on this text.
runs_of = $(if $(strip $(corpus)),$(shell .venv/bin/python -m pretrain.run_names $(call quoted,$(corpus)) $(1)),$(1))

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '  %s\n' '' \
	  'MODEL="gpt mlm"  models to train; pretrain also knows transformer gpt2 bert llama qwen3 modernbert t5' \
	  'DATA=PATH        your text: a file, folder, glob or dataset org/name (finetune: a labelled table)' \
	  'BUDGET=10m       wall time of each training run (30s, 10m, 4h)' \
	  'CONFIG=FILE      a YAML file from configs/' \
	  'RUN=NAME         name of the run, under runs/' \
	  'PROMPT="text"    text to continue' \
	  'LAUNCH=python    or torchrun, or "accelerate launch --config_file configs/accelerate/zero2.yaml"' \
	  'ARGS="key=value" any other setting of the stage; `python -m pretrain --help` lists them' \
	  '' 'Completion in bash: source configs/completion.bash'

# Built from nothing when requirements.txt changes. The copy is written last, so an interrupted build starts again.
.venv:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, but $(PYTHON) is " + sys.version.split()[0] + "; use make PYTHON=python3.11" if sys.version_info < (3, 10) else 0)'
	@echo "setting up .venv (once, a few minutes)"
	@rm -rf .venv && $(PYTHON) -m venv .venv && .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@cp requirements.txt .venv/.ready

tools: $(READY)
	@echo "installing the tools for tests and lint into .venv"
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@cp requirements-dev.txt .venv/.ready-dev

# The summary says once how to send the runs to W&B; they need one id each.
pipeline: export MINI_LLM_WANDB_HINT := no
pipeline: export WANDB_RUN_ID :=
pipeline: $(READY) ## train a tokenizer, a GPT, an MLM encoder and two classifiers; write a sample and a report
	@$(MAKE) --no-print-directory tokenizer RUN= CONFIG= ARGS=
	@$(MAKE) --no-print-directory pretrain RUN= CONFIG=
	@$(if $(strip $(DATA)),task=$$(python -m finetune.pipeline task "$$DATA") && )ON="$$DATA" DATA="$$task" $(MAKE) --no-print-directory finetune MODEL="$(MODEL)" RUN= CONFIG= ARGS=
	@$(if $(or $(TYPED_PROMPT),$(if $(strip $(DATA)),,no)),,PROMPT=$$(python -m finetune.pipeline prompt "$$DATA"); )run=$(call runs_of,gpt); if [ -d runs/$$run ]; then python -m generate runs/$$run --prompt="$$PROMPT" --num-samples 2 --record > /dev/null; fi
	@$(MAKE) --no-print-directory report
	@set -- $(call runs_of,$(MODEL)) && python -m mini_llm summary runs/$(call runs_of,tokenizer) "$${@/#/runs/}" \
	  $$(for run in "$$@"; do echo runs/$$run-classifier$(if $(strip $(DATA)),*); done)

tokenizer: $(READY) ## train, check and measure a SentencePiece tokenizer
	@$(split) && python -m tokenizer $(config) $(call given,DATA,--data) $(named) $(args)

pretrain: $(READY) ## pretrain MODEL on DATA within BUDGET
	@$(split) && set -- $(MODEL) && for model in $(MODEL); do $(LAUNCH) -m pretrain $(common) --model $$model $(args) || exit $$?; done

# Of the default models, those that are pretrained; of those that are asked for, all, pretrained first where need be.
finetune: $(READY) ## fine-tune the pretrained MODEL as a classifier on DATA
	@$(split) && set -- $(join $(addsuffix :,$(MODEL)),$(call runs_of,$(MODEL))) && pretrained=() && \
	  $(if $(filter file,$(origin MODEL)),for pair in "$$@"; do if [ -d "runs/$${pair#*:}/model" ]; then pretrained+=("$$pair"); fi; done && if [ $${#pretrained[@]} != 0 ]; then set -- "$${pretrained[@]}"; fi && ) \
	  for pair in "$$@"; do model=$${pair%%:*} source=runs/$${pair#*:} text="$$ON"; \
	  if [ ! -d $$source/model ]; then \
	    if [ -z "$$ON" ]; then text=$$(python -m finetune.pipeline text $(config) $(call given,DATA,data.path) $(args)) || exit $$?; fi; \
	    if [ -n "$$text" ]; then source=runs/$$(python -m pretrain.run_names "$$text" $$model); fi; fi; \
	  if [ ! -d $$source/model ]; then \
	    WANDB_RUN_ID= WANDB_SWEEP_ID= $(LAUNCH) -m pretrain --model $$model $${text:+--data "$$text"} $(call given,BUDGET,--budget) || exit $$?; fi; \
	  $(LAUNCH) -m finetune $(common) --model $$source $(args) || exit $$?; done

# Prompts of a file or of a terminal take the place of PROMPT.
generate: $(READY) ## continue PROMPT with the model in runs/gpt, or RUN
	@$(split) && python -m generate runs/$(if $(strip $(RUN)),"$$RUN",gpt) \
	  $(if $(filter --file --file=% --interactive,$(ARGS)),,--prompt="$$PROMPT") $(args)

score: $(READY) ## score the model in runs/gpt, or RUN, on DATA
	@$(split) && python -m scoring runs/$(if $(strip $(RUN)),"$$RUN",gpt) $(if $(strip $(DATA)),"$$DATA") $(args)

report: $(READY) ## write one self-contained report.html per run
	@python -m mini_llm report

runs: $(READY) ## list all runs (ARGS="show NAME", "diff A B", "lineage NAME", "verify" or "rm NAME")
	@$(split) && python -m mini_llm runs $(args)

doctor: $(READY) ## check this machine: packages, compiler, threads, GPU, W&B, caches, disk
	@$(split) && python -m mini_llm doctor $(args)

# A file's tests stay together, since they share what their fixtures trained.
workers = -n $(WORKERS) --dist loadfile

test: $(TOOLS) ## run the whole test suite
	@$(split) && python -m pytest $(workers) $(args)

test-fast: $(TOOLS) ## run the tests that are not marked slow, in about 90 seconds
	@$(split) && OMP_NUM_THREADS=1 python -m pytest $(workers) -m "not slow" $(args)

chaos: $(TOOLS) ## break running trainings (kill -9, full disks, flipped bits) and check what they leave
	@$(split) && python -m chaos $(args)

# The project's own packages, and the peers that only benchmarks need.
.venv-bench: $(READY)
	@echo "setting up .venv-bench (peers)"
	@rm -rf .venv-bench && .venv/bin/python -m venv .venv-bench
	@.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(.venv-bench/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	@cp benchmarks/requirements.txt .venv-bench/.ready

bench: $(PEERS) $(TOOLS) ## compare speed, memory and quality with peers (DATA=FOLDER, ONLY="name ...", NANOGPT=PATH, NANOCHAT=PATH)
	@$(split) && .venv-bench/bin/python -m benchmarks $(call given,DATA,--data) $(foreach name,$(ONLY),--only $(name)) $(args)

lint: $(TOOLS) typecheck ## check style, common mistakes and types
	@ruff check . && ruff format --check .

typecheck: $(TOOLS) ## check types only (ARGS=FOLDER for one folder)
	@ty check $(or $(ARGS),$(TYPED))

# For maintainers: pin every package of pyproject.toml and all that they need; versions stay unless ARGS=--upgrade.
requirements:
	@command -v uv > /dev/null || { echo "uv is needed: pip install uv"; exit 1; }
	@uv pip compile --quiet pyproject.toml --output-file requirements.txt $(ARGS) > /dev/null
	@uv pip compile --quiet --group dev --constraint requirements.txt --output-file requirements-dev.txt $(ARGS) > /dev/null

clean: ## remove .venv and caches; runs/ stays
	@rm -rf .venv .venv-bench .pytest_cache .ruff_cache .coverage* && find . -name __pycache__ -prune -exec rm -rf {} +
	@echo "removed .venv and caches; your runs are in runs/"
