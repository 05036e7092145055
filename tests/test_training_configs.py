"""Hydra composes the configuration of every task, model and objective."""

from __future__ import annotations

from importlib import resources

import pytest
from conftest import compose_config
from hydra.errors import HydraException

from ebt_policy.models.energy_model import EnergyModel
from ebt_policy.train import main
from ebt_policy.training.config import RunConfig, TrainConfig
from ebt_policy.training.task import TASKS

DOMAINS = {
    "policy": (
        ["push_t", "push_t_image", "adroit_door", "can", "lift", "metaworld", "robosuite", "square",
         "dataset", "tool_hang", "transport"],
        ["ebt", "bc", "diffusion", "flow_matching", "ibc"],
        ["flow", "equilibrium", "s1", "s2", "contrastive", "ebt_policy"],
    ),
    "text": (
        ["text"],
        ["ebt", "refiner", "transformer_pp", "masked_ebt", "bert"],
        ["s1", "s2", "s1_corrupted"],
    ),
    "image": (
        ["image"], ["ebt", "refiner", "dit"], ["s1", "s2", "s1_corrupted", "equilibrium"],
    ),
    "video": (["video"], ["ebt", "refiner", "transformer_pp", "autoencoder"], ["s1", "s2"]),
}  # fmt: skip
CASES = [
    (domain, task, model)
    for domain, (tasks, models, _) in DOMAINS.items()
    for task in tasks
    for model in models
]


@pytest.mark.parametrize(("domain", "task", "model"), CASES)
def test_task_selects_its_domain_and_model_options(domain, task, model):
    config = compose_config(f"task={task}", f"model={model}")
    assert config["domain"] == domain and config["model"]["name"] == model
    RunConfig(**config)
    TrainConfig(**config["train"])
    uses_objective = issubclass(TASKS.get(domain).models.get(model), EnergyModel)
    assert (config["objective"] is not None) == uses_objective
    assert config["size"]["name"] == ("xs" if domain == "policy" else "2xs")
    assert (config.get("vision") is not None) == bool(config["task"].get("cameras"))


@pytest.mark.parametrize(
    ("domain", "objective"), [(d, o) for d, (_, _, all_) in DOMAINS.items() for o in all_]
)
def test_objectives_have_the_options_of_the_domain(domain, objective):
    task = DOMAINS[domain][0][0]
    config = compose_config(f"task={task}", f"objective={objective}")
    assert config["objective"]["name"] == objective.removesuffix("_corrupted")
    others = [o for o in ("flow", "contrastive", "s1_corrupted") if o not in DOMAINS[domain][2]]
    for other in others:
        with pytest.raises(HydraException, match=f"objective/{other}/{domain}"):
            compose_config(f"task={task}", f"objective={other}")


def test_every_configuration_file_is_tested():
    groups = resources.files("ebt_policy.configs")
    names = {
        group: {f.name.removesuffix(".yaml") for f in groups.joinpath(group).iterdir()}
        for group in ("task", "model", "objective")
    }
    assert names["task"] == {task for tasks, _, _ in DOMAINS.values() for task in tasks}
    assert names["model"] == {model for _, models, _ in DOMAINS.values() for model in models}
    assert names["objective"] == {o for _, _, all_ in DOMAINS.values() for o in all_}


def test_order_of_arguments_does_not_matter():
    first = compose_config("task=text", "model=refiner", "size=s", "seed=3")
    assert first == compose_config("seed=3", "size=s", "model=refiner", "task=text")
    assert first["run_dir"] == "runs/text/refiner-s-seed3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=text", "model=bc"], "model=bc is unknown; there are ebt, "),
        (["task=push_t", "model=bert"], "model=bert is unknown; there are bc, "),
    ],
)
def test_model_of_another_domain_is_a_one_line_error(arguments, message, call_entry):
    code, error = call_entry(main, *arguments)
    assert code == 2 and message in error and error.count("\n") == 1


def test_sweep_over_models_of_a_domain_is_composed(call_entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, error = call_entry(main, "-m", "model=ebt,transformer_pp", "task=text", "train.lr=0")
    assert code == 2 and "train.lr must be positive" in error
