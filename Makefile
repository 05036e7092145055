# Needs python3 (3.11 to 3.13) and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
EXTRAS := robomimic metaworld adroit vision ros rerun sweeps
ALL := $(VENV)/.installed-extras
# The versions of Python that the project supports and this machine has.
PYTHONS := $(foreach python,python3.11 python3.12 python3.13,$(if $(shell $(python) --version 2> /dev/null),$(python)))
# A test file's fixtures are mostly made once: workers take neighbouring tests, until one has none left.
IN_PARALLEL := -n logical --maxprocesses 8 --dist worksteal
# Studies one after the other, with options; `python -m benchmarks.run` lists them.
run-studies = for study in $(1); do $(BIN)/python -m benchmarks.run study=$$study $(2) || exit 1; done
# SYSTEM_TORCH=1 uses an installed PyTorch of any version, with its CUDA libraries.
CONSTRAINTS := $(if $(SYSTEM_TORCH),$(VENV)/constraints.txt,constraints.txt)
VENV_OPTIONS := $(if $(SYSTEM_TORCH),--system-site-packages)
INSTALL := install --disable-pip-version-check -c $(CONSTRAINTS)

comma := ,
space := $(subst ,, )

.DEFAULT_GOAL := help
.PHONY: help docs push_t experiments robots language vision results test test-fast mutation matrix check format gpu benchmarks clean

help: ## this list
	@echo "Usage: make TARGET. Everything is installed into $(VENV) first: about 3 GB of downloads."
	@echo "With SYSTEM_TORCH=1 a PyTorch that is already installed for $(PYTHON) is used."
	@sed -nE 's/^([a-z_-]+):.*## (.*)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

push_t: $(READY) ## train the energy policy on Push-T, evaluate it, write a video and a report
	$(BIN)/python -m ebt_policy.train task=push_t resume=true

experiments: $(READY) ## all experiments behind docs/push_t.md, from training to tables: seven hours on 2 cores
	$(call run-studies,push_t ablations energy_signals recovery_push_t recovery_push_t_selection)
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.render_figures
	$(BIN)/python -m benchmarks.render_tables

robots: $(ALL) push_t ## the experiments on simulated robots: ten hours on 2 cores
	$(call run-studies,metaworld_10 mujoco cameras)
	$(call run-studies,recovery_lift recovery_lift_disturbed)
	$(call run-studies,recovery_metaworld-peg-insert-side recovery_metaworld-peg-insert-side_disturbed)
	$(BIN)/python -m benchmarks.rollouts
	$(BIN)/python -m benchmarks.render_rollouts
	$(BIN)/python -m benchmarks.render_tables

language: $(READY) ## the experiments on language models: seven hours on 2 cores
	$(call run-studies,language_tinyshakespeare language_wikitext2 masked_text scaling)
	$(BIN)/python -m benchmarks.language_speed
	$(BIN)/python -m benchmarks.render_tables

vision: $(READY) ## the experiments on images and video; asks for `pip install bm3d`
	$(call run-studies,denoising_cbsd68 denoising_bsd68 denoising_set12,updates=2000)
	$(call run-studies,representation generation video_g1 video_push_t video_example)
	$(BIN)/python -m benchmarks.image_speed
	$(BIN)/python -m benchmarks.render_tables

test: $(ALL) ## all tests, with all simulators
	$(BIN)/python -m pytest $(IN_PARALLEL)

mutation: $(READY) ## which small changes of descent, trainer and safety no test notices; MUTANTS='ebt_policy.real_robot.safety.*' for some
	$(BIN)/pip $(INSTALL) mutmut
	$(BIN)/mutmut run --max-children 1 $(MUTANTS)

matrix: $(EXTRAS:%=matrix-%) $(PYTHONS:%=matrix-%) ## each extra alone and each Python, installed from nothing, and the quick tests

# Arguments: name of the environment, its Python, extras, tests.
define test-alone
	rm -rf $(VENV)-$(1)
	$(2) -m venv $(VENV)-$(1)
	$(VENV)-$(1)/bin/pip $(INSTALL) --quiet -e ".[$(3)]"
	$(VENV)-$(1)/bin/pip check
	$(VENV)-$(1)/bin/python -m pytest -m $(4)
	rm -rf $(VENV)-$(1)
endef

matrix-python%:
	$(call test-alone,python$*,python$*,dev,"not slow")

matrix-%:
	$(call test-alone,$*,$(PYTHON),dev$(comma)$*,"$* and not slow")

test-fast: $(READY) ## the tests that neither train nor compile nor install
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "not slow"

results: $(READY) ## the documents' tables and figures from the stored results
	$(BIN)/python -m benchmarks.render_tables

check: $(ALL) ## lint, format, types, and the layers of the imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

gpu: $(READY) ## latency and training speed on this machine's GPU, in nine minutes; what is stored is not measured again
	$(BIN)/python -m benchmarks.gpu

benchmarks: $(READY) ## speed ratios of training steps and of chunk latency
	$(BIN)/python -m benchmarks.speed

docs: $(READY) ## the documentation as a website, in site/
	$(BIN)/pip $(INSTALL) --quiet -e ".[docs]"
	$(BIN)/mkdocs build --strict

$(READY): pyproject.toml constraints.txt
	@echo "Installing into $(VENV): about 3 GB of downloads, 9 GB on disk with all extras."
	$(PYTHON) -m venv $(VENV_OPTIONS) $(VENV)
	grep -vE '^(torch|torchvision|triton|nvidia-|cuda-)' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/pip $(INSTALL) -e ".[dev]"
	touch $@

$(ALL): $(READY)
	$(BIN)/pip $(INSTALL) -e ".[dev,$(subst $(space),$(comma),$(EXTRAS))]"
	touch $@

clean:
	rm -rf $(VENV) $(EXTRAS:%=$(VENV)-%) build dist mutants *.egg-info
