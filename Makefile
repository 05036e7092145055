# Needs python3 (3.11 to 3.13) and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
EXTRAS := robomimic metaworld adroit vision ros rerun sweeps trackers onnx
ALL := $(VENV)/.installed-extras
# Other supported versions of Python that this machine has; all tests run with $(PYTHON).
VERSION := python$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
OTHERS := $(filter-out $(VERSION),python3.11 python3.12 python3.13)
PYTHONS := $(foreach python,$(OTHERS),$(if $(shell $(python) --version 2> /dev/null),$(python)))
# openpi-client requires NumPy 1.
OPENPI_PYTHON := $(firstword $(foreach python,python3.11 python3.12,$(if $(shell $(python) --version 2> /dev/null),$(python))))
LEROBOT_PYTHON := $(firstword $(foreach python,python3.12 python3.13,$(if $(shell $(python) --version 2> /dev/null),$(python))))
# Most fixtures are created once per test file, so workers take neighbouring tests; idle ones steal.
IN_PARALLEL := -n logical --maxprocesses 8 --dist worksteal
# Runs studies one after the other, with options; `python -m benchmarks.run` lists the studies.
run-studies = for study in $(1); do $(BIN)/python -m benchmarks.run study=$$study $(2) || exit 1; done
# SYSTEM_TORCH=1 uses an installed PyTorch of any version, with its CUDA libraries.
CONSTRAINTS := $(if $(SYSTEM_TORCH),$(VENV)/constraints.txt,constraints.txt)
VENV_OPTIONS := $(if $(SYSTEM_TORCH),--system-site-packages)
INSTALL := install --disable-pip-version-check -c $(CONSTRAINTS)

comma := ,
space := $(subst ,, )

.DEFAULT_GOAL := help
.PHONY: help docs push_t experiments robots language vision results test test-fast test-lerobot test-robomimic test-openpi mutation matrix check format gpu benchmarks clean

help: ## show this list
	@echo "Usage: make TARGET. Everything is installed into $(VENV) first: about 3 GB of downloads."
	@echo "With SYSTEM_TORCH=1 a PyTorch that is already installed for $(PYTHON) is used."
	@sed -nE 's/^([a-z_-]+):.*## (.*)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

push_t: $(READY) ## train the energy policy on Push-T, evaluate it, write a video and a report
	$(BIN)/python -m ebt_policy.train task=push_t resume=true

experiments: $(READY) ## run all experiments of docs/push_t.md, from training to tables (seven hours on 2 cores)
	$(call run-studies,push_t ablations energy_signals recovery_push_t recovery_push_t_selection)
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.render_figures
	$(BIN)/python -m benchmarks.render_tables

robots: $(ALL) push_t ## run the experiments on simulated robots (ten hours on 2 cores)
	$(call run-studies,metaworld_10 mujoco cameras)
	$(call run-studies,recovery_lift recovery_lift_disturbed)
	$(call run-studies,recovery_metaworld-peg-insert-side recovery_metaworld-peg-insert-side_disturbed)
	$(BIN)/python -m benchmarks.rollouts
	$(BIN)/python -m benchmarks.render_rollouts
	$(BIN)/python -m benchmarks.render_tables

language: $(READY) ## run the experiments on language models (seven hours on 2 cores)
	$(call run-studies,language_tinyshakespeare language_wikitext2 masked_text scaling)
	$(BIN)/python -m benchmarks.language_speed
	$(BIN)/python -m benchmarks.render_tables

vision: $(READY) ## run the experiments on images and video (needs `pip install bm3d`)
	$(call run-studies,denoising_cbsd68 denoising_bsd68 denoising_set12,updates=2000)
	$(call run-studies,representation generation video_g1 video_push_t video_example)
	$(BIN)/python -m benchmarks.image_speed
	$(BIN)/python -m benchmarks.render_tables

test: $(ALL) ## run all tests, with all simulators
	$(BIN)/python -m pytest $(IN_PARALLEL)

mutation: $(READY) ## find small changes of energy, training and safety that no test detects; MUTANTS='ebt_policy.real_robot.safety.*' selects some
	$(BIN)/pip $(INSTALL) mutmut
	$(BIN)/mutmut run --max-children 1 $(MUTANTS)

# These extras share one environment to save installation time.
SMALL := rerun sweeps trackers onnx ros vision
# The oldest and the newest version of Python; `make matrix-python3.12` tests the one between.
matrix: $(patsubst %,matrix-%,$(filter-out $(SMALL) robomimic,$(EXTRAS))) test-robomimic matrix-small $(patsubst %,matrix-%,$(filter-out python3.12,$(PYTHONS))) ## test extras alone and another Python version, in new environments

# Arguments: suffix of the environment, its Python, extras, tests to select, command to run then.
define test-alone
	rm -rf $(VENV)-$(1)
	$(2) -m venv $(VENV)-$(1)
	$(VENV)-$(1)/bin/pip $(INSTALL) --quiet -e ".[$(3)]"
	$(VENV)-$(1)/bin/pip check
	$(VENV)-$(1)/bin/python -m pytest -m $(4)
	$(5)
	rm -rf $(VENV)-$(1)
endef

matrix-python%:
	$(call test-alone,python$*,python$*,dev,"not slow" $(IN_PARALLEL))

matrix-small:
	$(call test-alone,small,$(PYTHON),dev$(comma)$(subst $(space),$(comma),$(strip $(SMALL))),"($(subst $(space), or ,$(strip $(SMALL)))) and not slow")

matrix-%:
	$(call test-alone,$*,$(PYTHON),dev$(comma)$*,"$* and not slow")

test-lerobot: $(READY) .venv-lerobot/.installed ## data sets and the policy plug-in in the real LeRobot, in an environment of its own (needs Python 3.12)
	$(BIN)/python -m pytest tests/test_lerobot.py

# LeRobot needs other versions of PyTorch, NumPy and PyAV.
.venv-lerobot/.installed: pyproject.toml plugins/lerobot_policy_ebt/pyproject.toml
	$(or $(LEROBOT_PYTHON),$(error LeRobot needs Python 3.12 or 3.13, which is not installed)) -m venv .venv-lerobot
	.venv-lerobot/bin/pip install --disable-pip-version-check -q "lerobot[training,diffusion,pusht]==0.6.1" -e ".[vision]" -e plugins/lerobot_policy_ebt
	touch $@

# robomimic is installed without its dependency egl_probe, which has to be compiled.
test-robomimic: ## the algorithm ebt in the real robomimic, and all tests of robosuite, in an environment of its own
	$(call test-alone,robomimic,$(PYTHON),dev$(comma)robomimic,"robomimic and not slow",$(VENV)-robomimic/bin/pip $(INSTALL) --quiet --no-deps robomimic==0.3.0 && $(VENV)-robomimic/bin/python -m pytest tests/test_robomimic_package.py)

test-openpi: $(READY) .venv-openpi/.installed ## serve a policy to the real openpi-client, in an environment of its own (needs Python 3.11 or 3.12)
	$(BIN)/python -m pytest tests/test_openpi.py

# openpi-client imports typing_extensions without requiring it.
.venv-openpi/.installed:
	$(or $(OPENPI_PYTHON),$(error openpi-client needs Python 3.11 or 3.12, which is not installed)) -m venv .venv-openpi
	.venv-openpi/bin/pip install --disable-pip-version-check -q "openpi-client==0.1.2" typing_extensions
	touch $@

test-fast: $(READY) ## run the tests that are not marked slow
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "not slow"

results: $(READY) ## update the tables and figures of the documents from the stored results
	$(BIN)/python -m benchmarks.render_tables

check: $(ALL) ## check lint, format, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

format: $(READY) ## fix lint errors and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

gpu: $(READY) ## measure latency and training speed on this machine's GPU in nine minutes; stored results are not measured again
	$(BIN)/python -m benchmarks.gpu

benchmarks: $(READY) ## measure speed ratios of training steps and chunk latency
	$(BIN)/python -m benchmarks.speed

docs: $(READY) ## build the documentation as a website in site/
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
	rm -rf $(VENV) $(VENV)-* build dist mutants *.egg-info
