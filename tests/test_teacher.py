"""Training on the chunks of a teacher from the same noise, and the part of the demonstrations."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tiny_policies import build, build_relative, generators, observe, training_batch

from ebt_policy.errors import ConfigError
from ebt_policy.policies import EnergyPolicy, load_policy
from ebt_policy.policies.task_config import PolicyTaskConfig
from ebt_policy.policies.teacher import (
    attach_teacher,
    with_teacher_negatives,
    with_teacher_targets,
)
from ebt_policy.train import train

KINDS = pytest.mark.parametrize("kind", ["flow", "flow_matching"])
TEACHER = "model.teacher=RUN"
VERIFIER = "objective.steps=0"


@KINDS
def test_targets_are_the_teachers_chunks_for_the_same_noise(kind):
    teacher, student = build(kind), build(kind, TEACHER)
    teacher.configure_inference(steps=4)
    student.set_teacher(partial(with_teacher_targets, teacher))
    batch = student.with_noise(training_batch())
    normal = batch["noise"]["normal"]
    alone = teacher.transport(  # type: ignore[attr-defined]
        teacher.observation_features(batch), normal.view(4, 1, 16, 2)
    )
    torch.testing.assert_close(batch["action"], alone[:, 0].detach())
    assert not torch.equal(batch["action"], training_batch()["action"])
    loss, _ = student(batch)
    assert loss.isfinite()


def test_negatives_are_the_teachers_chunks_in_the_verifiers_units():
    teacher = build_relative("flow_matching")
    verifier = build("contrastive", VERIFIER, "objective.negatives=3")
    verifier.set_teacher(partial(with_teacher_negatives, verifier, teacher))
    batch = training_batch()
    torch.manual_seed(5)
    negatives = verifier.with_noise(batch)["noise"]["init"]
    torch.manual_seed(5)
    noise = torch.randn(4, 3, 16, 2)
    obs = {"obs": verifier.normalizer.unnormalize("obs", batch["obs"])}
    x = teacher.transport(teacher.encode_observation(obs), noise)  # type: ignore[attr-defined]
    x = teacher.normalizer.clamp("action", x)
    expected = verifier.normalize_actions(obs["obs"], teacher.unnormalize_actions(obs["obs"], x))
    torch.testing.assert_close(negatives, expected.detach())


def test_a_verifier_gives_demonstrations_a_lower_energy_than_its_teachers_chunks():
    """Demonstrations are positive, the teacher's chunks negative; both may have any noise."""
    verifier = build("contrastive", VERIFIER, "objective.negatives=4")
    assert isinstance(verifier, EnergyPolicy)
    verifier.set_teacher(
        lambda batch: {**batch, "noise": {"init": -torch.rand_like(batch["noise"]["init"])}}
    )
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(verifier.parameters(), lr=3e-3)
    for _ in range(60):
        batch = training_batch(32)
        batch["action"] = torch.rand_like(batch["action"])
        loss, _ = verifier(verifier.with_noise(batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    good, bad = torch.rand(8, 1, 16, 2), -torch.rand(8, 1, 16, 2)
    obs = observe(8)
    chunks = verifier.unnormalize_actions(obs["obs"], torch.cat([good, bad], dim=1))
    energies = verifier.energies(obs, chunks)
    assert bool((energies[:, 0] < energies[:, 1]).all())


@KINDS
def test_one_step_reaches_the_teachers_chunk(kind):
    """The teacher moves noise by its sign, which demonstrations alone cannot teach in one step."""
    student = build(kind, TEACHER)
    student.configure_inference(steps=1, num_candidates=1)
    student.set_teacher(
        lambda batch: {**batch, "action": batch["noise"]["normal"].view(-1, 16, 2).sign() / 2}
    )
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    errors = []
    for _ in range(150):
        batch = student.with_noise(training_batch(32))
        loss, _ = student(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for _ in range(4):
        batch = student.with_noise(training_batch(32))
        normal = batch["noise"]["normal"].view(32, 1, 16, 2)
        chunk = student.transport(  # type: ignore[attr-defined]
            student.observation_features(batch), normal
        ).detach()
        errors.append(float((chunk[:, 0] - batch["action"]).square().mean()))
    assert max(errors) < 0.2  # a prediction of the mean, 0, has an error of 0.25


def test_candidates_differ_after_one_step():
    """Without a teacher, all candidates of one step are the mean."""
    plain, student = build("flow"), build("flow", TEACHER)
    for policy in (plain, student):
        torch.manual_seed(1)
        for parameter in policy.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        policy.configure_inference(steps=1, num_candidates=4)
        features = policy.encode_observation(observe(1))
        path = policy.descend(features, generator=generators(0)).path[-1]  # type: ignore[attr-defined]
        spread = float(path.detach().std(dim=1).mean())
        assert (spread > 1e-3) == (policy is student)


def test_a_student_is_trained_resumed_and_loaded_without_its_teacher(tiny, tmp_path):
    teacher = train(tiny("teacher"))
    overrides = [f"model.teacher='{teacher}@steps=2'", "model.inference.steps=1"]
    student = train(tiny("student", *overrides))
    again = train(tiny("student", *overrides, "resume=true", "train.log_every=2"))
    assert again == student
    (tmp_path / "teacher").rename(tmp_path / "moved")
    policy = load_policy(student)
    chunk = policy.predict_chunk(observe(1))
    assert chunk.actions.isfinite().all() and int(chunk.steps_used) == 1


def test_teachers_that_do_not_fit(tiny):
    teacher = train(tiny("teacher"))
    for overrides, message in (
        (("model=flow_matching",), "must have the model and the data of this run"),
        (("size.layers=2",), "has another size"),
        (("seed=1",), "must have the model and the data"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(tiny("student", *overrides, f"model.teacher={teacher}"))
    other = train(tiny("bc", "model=bc"))
    with pytest.raises(ConfigError, match="use model=ebt or model=flow_matching"):
        attach_teacher(build("flow"), str(other))
    with pytest.raises(ConfigError, match="has other observations, actions or horizons"):
        attach_teacher(build("contrastive", n_action_steps=4), str(teacher))
    with pytest.raises(ConfigError, match=r"model.teacher needs objective=flow"):
        build("equilibrium", TEACHER)


# -- the part of the demonstrations -------------------------------------------------------------


def test_episodes_select_a_part_of_the_demonstrations(tiny):
    task = PolicyTaskConfig.from_config(tiny("run"))
    everything, _ = task.demonstrations()
    for text, expected in ((":3", slice(3)), ("1::2", slice(1, None, 2)), ("-2:", slice(-2, None))):
        part, note = PolicyTaskConfig.from_config(
            tiny("run", f"task.episodes={text}")
        ).demonstrations()
        lengths = everything.lengths[expected]
        assert part.lengths.tolist() == lengths.tolist()
        assert note.endswith(f"{len(lengths)} of them are used (task.episodes={text}).")


@pytest.mark.parametrize(
    ("text", "message"),
    [("3", "not a slice"), ("a:b", "not a slice"), ("::0", "not a slice"), ("1:2:3:4", "not a sl")],
)
def test_wrong_parts_of_the_demonstrations(tiny, text, message):
    config = tiny("run")
    config["task"]["episodes"] = text
    with pytest.raises(ConfigError, match=message):
        PolicyTaskConfig.from_config(config)


def test_a_part_without_demonstrations(tiny):
    with pytest.raises(ConfigError, match=r"task.episodes=900: selects none of the"):
        PolicyTaskConfig.from_config(tiny("run", "task.episodes=900:")).demonstrations()


def test_a_run_from_before_an_option_resumes(tiny, tmp_path):
    train(tiny("run"))
    file = tmp_path / "run" / "config.yaml"
    stored: Any = OmegaConf.load(file)
    del stored["task"]["episodes"], stored["model"]["energy"], stored["model"]["teacher"]
    OmegaConf.save(stored, file)
    train(tiny("run", "resume=true"))
    OmegaConf.save(stored, file)
    with pytest.raises(ConfigError, match=r"other settings of task.episodes"):
        train(tiny("run", "resume=true", "task.episodes=:5"))
