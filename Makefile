# Every target does the set-up it needs. `make help` lists targets and variables.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help pipeline tokenizer pretrain finetune generate report test chaos bench lint clean

PYTHON ?= python3
LAUNCH ?= python
MODEL  ?= gpt mlm
PROMPT ?= def read_lines(path):
DATA   ?=
BUDGET ?=
CONFIG ?=
RUN    ?=
ONLY   ?=
ARGS   ?=

READY := .venv/.ready
export NANOGPT NANOCHAT
export PATH := $(CURDIR)/.venv/bin:$(PATH)

quoted = '$(subst ','\'',$(1))'
given  = $(if $(strip $($(1))),$(2) $(call quoted,$($(1))))
# run=NAME rather than --run NAME: torchrun takes --run for an abbreviation of its own options.
named  = $(if $(strip $(RUN)),run=$(call quoted,$(RUN)))
common = $(CONFIG) $(call given,DATA,--data) $(call given,BUDGET,--budget) $(named)

# The text that the pretrained models are of, as their runs' names show it: nothing for the built-in corpus.
ON     ?= $(if $(filter pipeline,$(MAKECMDGOALS)),$(DATA))
suffix  = $(if $(strip $(ON)),$(shell .venv/bin/python -c 'import sys; from corpus.config import CorpusConfig; print("-" + CorpusConfig(sources=sys.argv[1:]).name)' $(call quoted,$(ON))))

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\n  %s\n' \
	  'MODEL="gpt mlm"  which models (both by default); pretrain: transformer gpt2 bert llama qwen3 modernbert t5 too' \
	  'DATA=PATH        your text: file, folder, glob or dataset org/name (finetune: a labelled table)' \
	  'BUDGET=10m       wall time of each training (30s, 10m, 4h)' \
	  'CONFIG=FILE      a YAML file of configs/   RUN=NAME  name under runs/   PROMPT="text" to continue' \
	  'LAUNCH=python    or "accelerate launch --config_file configs/accelerate/zero2.yaml"' \
	  'ARGS="key=value" anything else the stage takes; `python -m pretrain --help` lists it' \
	  '' 'Completion in bash: source configs/completion.bash'

# Rebuilt from nothing when requirements.txt changes; moved into place only when complete.
$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; use make PYTHON=python3.11" if sys.version_info < (3, 10) else 0)'
	@echo "setting up .venv (once, a few minutes)"
	@rm -rf .venv && $(PYTHON) -m venv .venv && .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

pipeline: $(READY) ## text -> tokenizer, GPT and MLM, two classifiers, a sample, a report
	@$(MAKE) --no-print-directory tokenizer RUN= CONFIG= ARGS=
	@$(MAKE) --no-print-directory pretrain RUN= CONFIG=
	@$(MAKE) --no-print-directory finetune DATA= RUN= CONFIG= ARGS= ON=$(call quoted,$(DATA))
	@if [ -d runs/gpt$(suffix) ]; then python -m generate runs/gpt$(suffix) $(call quoted,$(PROMPT)) --num-samples 2 --record > /dev/null; fi
	@$(MAKE) --no-print-directory report
	@python -m mini_llm summary runs/tokenizer$(suffix) $(foreach m,$(MODEL),runs/$(m)$(suffix)) $(foreach m,$(MODEL),runs/$(m)$(suffix)-classifier)

tokenizer: $(READY) ## train a SentencePiece tokenizer, check and measure it
	@python -m tokenizer $(CONFIG) $(call given,DATA,--data) $(named) $(ARGS)

pretrain: $(READY) ## pretrain MODEL on DATA within BUDGET
	@for model in $(MODEL); do $(LAUNCH) -m pretrain $(common) --model $$model $(ARGS) || exit $$?; done

finetune: $(READY) ## fine-tune the pretrained MODEL into a classifier of DATA
	@for model in $(MODEL); do \
	  if [ ! -d runs/$$model$(suffix)/model ]; then $(LAUNCH) -m pretrain --model $$model $(call given,ON,--data) || exit $$?; fi; \
	  $(LAUNCH) -m finetune $(common) --model runs/$$model$(suffix) $(ARGS) || exit $$?; done

generate: $(READY) ## continue PROMPT with runs/gpt, or RUN
	@python -m generate runs/$(or $(RUN),gpt) $(call quoted,$(PROMPT)) $(ARGS)

report: $(READY) ## one self-contained report.html per run
	@python -m mini_llm report

test: $(READY) ## the test suite
	@python -m pytest $(ARGS)

chaos: $(READY) ## do to runs what can happen to them (kills, full disks, flipped bits) and compare what is left
	@python -m chaos $(ARGS)

# The project's packages and the peers', which the project itself does not need.
.venv-bench/.ready: $(READY) benchmarks/requirements.txt
	@echo "setting up .venv-bench (peers)"
	@rm -rf .venv-bench && .venv/bin/python -m venv .venv-bench
	@.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(.venv-bench/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	@touch $@

bench: .venv-bench/.ready ## speed, memory and quality beside peers (DATA=FOLDER, ONLY="name ...", NANOGPT=PATH, NANOCHAT=PATH)
	@.venv-bench/bin/python -m benchmarks $(call given,DATA,--data) $(foreach name,$(ONLY),--only $(name)) $(ARGS)

lint: $(READY) ## style and mistakes
	@ruff check . && ruff format --check .

clean: ## remove .venv and caches; runs/ stays
	@rm -rf .venv .venv-bench .pytest_cache .ruff_cache && find . -name __pycache__ -prune -exec rm -rf {} +
	@echo "removed .venv and caches; your runs are in runs/"
