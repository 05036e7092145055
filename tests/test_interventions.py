"""A person takes over from a policy, the ticks are recorded as human, and training weighs them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from doubles import point_runner
from test_dataset_task import configure

from benchmarks.measurements.interventions import ScriptedPerson, first_parts
from ebt_policy.data.dataset import open_dataset
from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.episodes import Episodes
from ebt_policy.data.windows import Windows
from ebt_policy.errors import ConfigError
from ebt_policy.policies.task_config import PolicyTaskConfig
from ebt_policy.real_robot.action_source import ActionSource
from ebt_policy.real_robot.clock import SimulatedClock
from ebt_policy.real_robot.interventions import InterventionSource
from ebt_policy.real_robot.keyboard import Operator
from ebt_policy.real_robot.recorder import Recorder
from ebt_policy.real_robot.recording_layout import Layout
from ebt_policy.real_robot.run_options import RunOptions
from ebt_policy.real_robot.supervisor import State
from ebt_policy.train import train


class Corrector(ActionSource):
    """A scripted person, who moves to the origin."""

    def restart(self) -> None:
        self.restarts = getattr(self, "restarts", 0) + 1

    def action(self, tick: int, motion: Any) -> np.ndarray:
        self.first_position = getattr(self, "first_position", np.array(motion.position))
        return np.array(motion.position) * 0.95


def intervene(runner: Any, is_wanted: Any) -> InterventionSource:
    """Let a scripted person take over in a runner while ``is_wanted(number of the tick)``."""
    policy, ticks = runner.source, []
    source = InterventionSource(
        policy, Corrector(policy.dt, policy.worker),
        lambda: is_wanted(ticks.append(1) or len(ticks) - 1),
    )  # fmt: skip
    runner.source = runner.loop.source = source
    runner.prepare()
    return source


def test_a_person_takes_over_and_hands_back(tmp_path):
    runner, _, policy, _ = point_runner(record=tmp_path / "store")
    source = intervene(runner, lambda tick: 10 <= tick < 20)
    episode = runner.run_episode(0)
    assert episode.completed and episode.interventions == 1
    flags = [tick.is_human for tick in episode.ticks]
    assert flags[:10] == [False] * 10 and flags[10:20] == [True] * 10 and not any(flags[20:])
    # The person starts from the robot's motion, and the policy plans anew from its own.
    before = episode.ticks[9].command
    np.testing.assert_allclose(source.person.first_position, before)  # type: ignore[attr-defined]
    commands = np.stack([tick.command for tick in episode.ticks[1:]])
    assert np.abs(np.diff(commands, axis=0)).max() < 1.0  # no jump: 8 per s at 10 Hz
    assert len(policy.calls) > 4 and len(episode.latencies) > 4
    with open_dataset(tmp_path / "store") as dataset:
        recorded = dataset.read(0, ["human"])["human"]
    assert recorded.tolist() == [
        tick.is_human for tick in episode.ticks if tick.desired is not None
    ]


def test_the_plan_of_the_policy_is_hidden_during_an_intervention():
    runner, _, _, _ = point_runner()
    source = intervene(runner, lambda tick: tick >= 15)
    runner.run_episode(0)
    assert source.is_human and source.plan is None and source.policy.plan is not None
    assert source.hold_reason(99) == "" and source.latencies is source.policy.latencies
    assert source.transitions is source.policy.transitions


def test_a_held_robot_can_be_taken_over():
    runner, _, _, _ = point_runner()
    operator = Operator(runner.supervisor, runner.estop)
    source = intervene(runner, lambda tick: operator.wants_control)
    source.policy.hold_reason = lambda tick: "unsure" if tick == 8 else ""  # type: ignore[method-assign]

    def watch(tick: Any) -> None:
        if tick.state is State.HOLD and tick.number > 12:
            operator.press_key("t")

    runner.loop.observers = [*runner.loop.observers, watch]
    episode = runner.run_episode(0)
    assert episode.completed and episode.interventions == 1
    reasons = [change.reason for change in runner.supervisor.changes]
    assert "unsure" in reasons and "taken over by a person" in reasons
    operator.press_key("t")
    assert not operator.wants_control


def test_takeover_needs_a_policy():
    with pytest.raises(ConfigError, match="takeover=true needs mode=run, got mode=teleop"):
        RunOptions(mode="teleop", takeover=True)


def test_stores_from_before_the_column_can_be_appended(tmp_path):
    old = Layout({"obs": ("<f4", (2,))}, ("x", "y"), 10.0, "point", has_human=False)
    rows = {name: np.zeros((3, *shape), old.dtype[name].base) for name, shape in
            old.shapes().items()}  # fmt: skip
    write_episodes(tmp_path / "store", Episodes(rows, np.array([3]), old.attributes()))
    Recorder(tmp_path / "store", old)
    runner, _, _, _ = point_runner(record=tmp_path / "store")
    assert runner.run_episode(0).kept
    with open_dataset(tmp_path / "store") as dataset:
        assert len(dataset) == 2 and "human" not in dataset.features


# -- training -------------------------------------------------------------------------------------


def test_windows_are_repeated_by_their_weight():
    arrays = {"obs": np.arange(12.0)[:, None], "action": np.zeros((12, 1))}
    sizes = {"horizon": 4, "n_obs_steps": 2, "n_action_steps": 2}
    plain = Windows(arrays, [12], **sizes)
    weight = np.array([0, 1, 3] * 4)
    weighted = Windows(arrays | {"weight": weight}, [12], **sizes)
    newest = plain.rows(torch.arange(len(plain)))[0][:, -1].tolist()
    expected = [row for row in newest for _ in range(weight[row])]
    assert weighted.rows(torch.arange(len(weighted)))[0][:, -1].tolist() == expected
    with pytest.raises(ConfigError, match="no window has a positive weight"):
        Windows(arrays | {"weight": 0 * weight}, [12], **sizes)


def test_corrections_are_weighed_in_training(tmp_path):
    rng = np.random.default_rng(0)
    obs = np.cumsum(rng.normal(size=(120, 3)), axis=0)
    arrays = {
        "obs": obs, "action": obs[:, :2] + 0.1, "human": np.arange(120) % 40 >= 30,
    }  # fmt: skip
    write_episodes(tmp_path / "store", Episodes(arrays, np.array([40, 80, 120]), {"rate_hz": 10}))
    options = ("task.human_weight=5", "task.policy_weight=0")
    config = configure(tmp_path / "store", "run", *options)
    task = PolicyTaskConfig.from_config(config).resolved()
    training, held_out = task.split(task.demonstrations()[0], 0)
    windows = task.windows(training)
    assert set(training.arrays["weight"].tolist()) == {0, 5} and "weight" not in held_out.arrays
    assert len(windows) == 5 * 2 * 3  # windows whose newest row is human, in two episodes
    assert (train(config) / "evaluation/report.html").exists()
    arrays["human"][:80] = False
    write_episodes(tmp_path / "store", Episodes(arrays, np.array([40, 80, 120]), {"rate_hz": 10}))
    with pytest.warns(UserWarning, match="2 of 3 episodes of .* are not trained on, because no"):
        task.demonstrations()
    del arrays["human"]
    write_episodes(tmp_path / "plain", Episodes(arrays, np.array([40, 80, 120]), {"rate_hz": 10}))
    with pytest.raises(ConfigError, match="has no column 'human'"):
        train(configure(tmp_path / "plain", "other", *options))
    with pytest.raises(ConfigError, match=r"task.human_weight must be at least 0, got -1"):
        train(configure(tmp_path / "plain", "other", "task.human_weight=-1"))


# -- the study of scripted corrections -----------------------------------------------------------


def test_scripted_person_takes_over_without_progress_and_hands_back():
    clock, robot = SimulatedClock(), SimpleNamespace(score=0.0)
    wants_control = ScriptedPerson(robot, clock)  # type: ignore[arg-type]

    def decisions(seconds: float, score_per_s: float) -> list[bool]:
        flags = []
        for _ in range(round(10 * seconds)):
            clock.wait_until(clock.now() + 0.1)
            robot.score += 0.1 * score_per_s
            flags.append(wants_control())
        return flags

    assert not any(decisions(8, 0.05))  # There is progress.
    assert decisions(5, 0.0)[-1]  # There is none for four seconds.
    assert not decisions(3, 0.1)[-1]  # It made enough progress.
    assert decisions(5, 0.0)[-1]
    flags = decisions(7, 0.0)  # Without progress, it hands back after six seconds.
    assert not all(flags) and flags[0]
    wants_control.begin()
    assert not wants_control()


def test_first_interventions_of_a_recording():
    human = np.zeros(40, bool)
    human[[2, 3, 8, 9, 10, 11, 25, 26, 35]] = True  # the third starts with the second episode
    ends = np.array([10, 30, 40])
    recording = Episodes(
        {"obs": np.zeros((40, 3)), "action": np.zeros((40, 2)), "human": human}, ends,
        {"rate_hz": 10, "robot": "x"},
    )  # fmt: skip
    first, minutes = first_parts(recording, 2)
    assert minutes * 60 == pytest.approx(0.4)
    assert first.ends.tolist() == [10] and first.arrays["human"].sum() == 4
    more, _ = first_parts(recording, 4)
    assert more.ends.tolist() == [10, 30] and more.arrays["human"].sum() == 8
    third, _ = first_parts(recording, 3)
    assert np.flatnonzero(third.arrays["human"]).tolist() == [2, 3, 8, 9, 10, 11]
    assert third.attrs == {"rate_hz": 10}


def test_failed_demonstrations_take_time_but_are_left_out():
    human = np.repeat([2, 1, 2, 1], 10)
    arrays = {"obs": np.zeros((40, 3)), "action": np.zeros((40, 2)), "human": human}
    recording = Episodes(arrays, np.array([10, 20, 30, 40]), {"rate_hz": 10})
    for count, episodes, seconds in ((1, 1, 2.0), (2, 2, 4.0)):
        part, minutes = first_parts(recording, count)
        assert len(part) == episodes and part.arrays["human"].all()
        assert minutes * 60 == pytest.approx(seconds)
