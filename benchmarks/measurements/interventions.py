"""Learning from interventions (HG-DAgger), against the same number of fresh demonstrations.

A policy that was trained on few demonstrations runs on the simulated robot. A scripted person,
which is another policy, takes over when it makes no progress, and hands back after some progress.
Policies are then trained again on the demonstrations and on the person's actions. Time is
simulated.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.device import DEVICE
from benchmarks.measurements.record_train_run import PREDICTION_S, new_recording, require_count
from benchmarks.measurements.teleop_end_to_end import FIRST_SEED, successful
from benchmarks.study import StudyContext, TrainingCommand
from benchmarks.training import compose_config, train_all
from ebt_policy.data.episode_store import read_episodes, write_episodes
from ebt_policy.data.episodes import Episodes
from ebt_policy.envs.env_spec import EVALUATION_SEED
from ebt_policy.policies.entries import load_policy_entries
from ebt_policy.policies.eval_config import EvalConfig
from ebt_policy.policies.evaluate import evaluate_policies
from ebt_policy.policies.task_config import PolicyTaskConfig
from ebt_policy.real_robot.action_source import ActionSource
from ebt_policy.real_robot.clock import SimulatedClock
from ebt_policy.real_robot.drivers.sim import SimRobot
from ebt_policy.real_robot.episode_runner import EpisodeRunner, observation_shapes, tick_seconds
from ebt_policy.real_robot.execution import ExecutionOptions
from ebt_policy.real_robot.inference_worker import SimulatedWorker
from ebt_policy.real_robot.interventions import InterventionSource
from ebt_policy.real_robot.planner import Planner
from ebt_policy.real_robot.robots import load_robot

COUNTS = (10, 20, 40)  # interventions, or fresh demonstrations
MAX_EPISODES = 400
PATIENCE_S = 4.0  # time without progress after which the person takes over
PROGRESS = 0.02  # increase of the best score that counts as progress
HAND_BACK_GAIN = 0.15  # increase of the best score after which the person hands back
HAND_BACK_S = 6.0  # longest intervention


class ScriptedPerson:
    """The decision of a scripted person, at each tick, whether to move the robot.

    Args:
        robot: the simulated robot, whose best score the person sees.
        clock: clock of the simulation.
    """

    def __init__(self, robot: SimRobot, clock: SimulatedClock) -> None:
        self._robot, self._clock = robot, clock
        self.begin()

    def begin(self) -> None:
        """Start an episode."""
        self._acts, self._since, self._score = False, self._clock.now(), 0.0

    def __call__(self) -> bool:
        now, score = self._clock.now(), self._robot.score
        if self._acts:
            if score >= self._score + HAND_BACK_GAIN or now >= self._since + HAND_BACK_S:
                self._acts, self._since, self._score = False, now, score
        elif score >= self._score + PROGRESS:
            self._since, self._score = now, score
        elif now >= self._since + PATIENCE_S:
            self._acts, self._since, self._score = True, now, score
        return self._acts


def interventions(context: StudyContext) -> dict[str, Any]:
    """Train, correct, train again and evaluate; return scores and the person's time.

    The study has the options ``person`` (a checkpoint), ``demonstrations`` (of the first policy),
    ``updates`` and ``episodes``.
    """
    options, data = context.options, context.folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    demonstrations = data / "demonstrations.zarr"
    if not demonstrations.exists():
        write_demonstrations(demonstrations, options.demonstrations)
    seeds = range(options.seeds)
    train_all([[_training(context, "first", seed, [demonstrations]) for seed in seeds]],
              options.parallel)  # fmt: skip
    minutes: dict[str, list[float]] = {}
    commands = []
    for seed in seeds:
        first = _training(context, "first", seed, [demonstrations]).run_dir
        recordings = {
            "interventions": correct(first, options.person, data / f"corrections-seed{seed}"),
            "demonstrations": demonstrate(options.person, data / f"fresh-seed{seed}", seed),
        }
        for kind, recording in recordings.items():
            for count in COUNTS:
                part = data / f"{kind}-{count}-seed{seed}.zarr"
                episodes, person_minutes = first_parts(recording, count)
                if not part.exists():
                    write_episodes(part, episodes)
                name = f"{kind}-{count}"
                minutes.setdefault(name, []).append(person_minutes)
                commands.append(_training(context, name, seed, [demonstrations, part]))
    train_all([commands], options.parallel)
    names = ["first", *minutes]
    result = evaluate_policies(
        [f"{context.folder / name}-seed*@steps=2,num_candidates=8" for name in names],
        EvalConfig(options.episodes, EVALUATION_SEED, 0, 8),
        output=context.output, device=DEVICE, command=context.command,
    )  # fmt: skip
    return {**result, "names": names, "person_minutes": {"first": [], **minutes}}


def _training(
    context: StudyContext, name: str, seed: int, stores: Sequence[Path]
) -> TrainingCommand:
    """Return the training of a policy on episode stores, without the actions of policies."""
    has_human = len(stores) > 1
    overrides = (
        "task=dataset", f"task.path=[{','.join(map(str, stores))}]", "model=ebt",
        f"train.steps={context.options.updates}", "train.minutes=null",
        "task.validation_episodes=0", *(["task.policy_weight=0"] if has_human else []),
        "task.env={env_id: ebt_policy/PushT-v0, max_steps: 300}",
        *shlex.split(context.options.overrides),
    )  # fmt: skip
    return TrainingCommand(name, seed, context.folder, overrides)


def write_demonstrations(path: Path, count: int) -> None:
    """Write the first demonstrations of Push-T as an episode store, without mirror images."""
    task = PolicyTaskConfig.from_config(compose_config("task=push_t", f"task.episodes=:{count}"))
    episodes, _ = task.demonstrations()
    arrays = {name: episodes.arrays[name] for name in ("obs", "action")}
    write_episodes(path, Episodes(arrays, episodes.ends, {"rate_hz": 10}))


def correct(checkpoint: Path, person: str, store: Path) -> Episodes:
    """Record episodes of a policy until a person has taken over often enough.

    Args:
        checkpoint: run of the policy.
        person: checkpoint that replaces a person.
        store: the recording; if it exists, it is returned.
    """
    with new_recording(store) as partial:
        if partial is not None:
            runner, decides = simulated_run(str(checkpoint), person, partial)
            count = 0
            for seed in range(FIRST_SEED, FIRST_SEED + MAX_EPISODES):
                decides.begin()
                count += runner.run_episode(seed).interventions
                if count >= COUNTS[-1]:
                    break
            runner.close()
            require_count(count, COUNTS[-1], "interventions")
    return read_episodes(store)


def demonstrate(person: str, store: Path, seed: int) -> Episodes:
    """Record all attempts of the person until enough succeed; see `correct`.

    The column ``human`` is 2 for ticks of failed attempts, which take time but teach nothing.
    """
    with new_recording(store) as partial:
        if partial is not None:
            runner, _ = simulated_run(person, None, partial)
            first, kept = FIRST_SEED + (1 + seed) * MAX_EPISODES, []
            for episode_seed in range(first, first + MAX_EPISODES):
                kept.append(successful(runner.run_episode(episode_seed)))
                if sum(kept) >= COUNTS[-1]:
                    break
            runner.close()
            require_count(sum(kept), COUNTS[-1], "demonstrations")
            (partial / "successful.json").write_text(json.dumps(kept))
    episodes = read_episodes(store)
    kept = json.loads((store / "successful.json").read_text())
    human = np.repeat(np.where(kept, 1, 2), episodes.lengths)
    return Episodes({**episodes.arrays, "human": human}, episodes.ends, episodes.attrs)


def simulated_run(
    checkpoint: str, person: str | None, store: Path
) -> tuple[EpisodeRunner, ScriptedPerson]:
    """Return a runner of Push-T on a simulated clock, with a scripted person if there is one."""
    robot, clock = load_robot("sim_push_t"), SimulatedClock()
    driver = robot.make_driver(clock)
    assert isinstance(driver, SimRobot)
    torch.set_num_threads(1)

    def planner(source: str) -> Planner:
        entry = load_policy_entries([source], torch.device("cpu"))[0]
        worker = SimulatedWorker(clock, lambda: PREDICTION_S)
        dt, execution = tick_seconds(robot, 1.0), ExecutionOptions(mode="async")
        return Planner(entry.model, robot.safety, dt, worker, clock, execution)

    policy = planner(checkpoint)
    decides = ScriptedPerson(driver, clock)
    source: ActionSource = policy
    if person is not None:
        source = InterventionSource(policy, planner(person), decides)
    shapes = observation_shapes(policy.policy)
    runner = EpisodeRunner(robot, driver, source, clock, shapes, watchdog=False, record=store)
    runner.prepare()
    return runner, decides


def first_parts(recording: Episodes, count: int) -> tuple[Episodes, float]:
    """Return the first interventions, or successful demonstrations, and the person's minutes.

    Later ticks of a person in the last episode are marked as the policy's. Failed demonstrations
    are left out, but their time counts.
    """
    human = recording.arrays["human"].astype(int)
    is_taught = human == 1
    before = np.concatenate([[False], is_taught[:-1]])
    before[recording.ends[:-1]] = False  # An episode does not continue the one before.
    is_taught &= np.cumsum(is_taught & ~before) <= count
    last = np.flatnonzero(is_taught)[-1]
    ticks = int(is_taught.sum() + (human[: last + 1] == 2).sum())
    rate_hz = recording.attrs["rate_hz"]
    arrays = {name: recording.arrays[name] for name in ("obs", "action")}
    selected = Episodes({**arrays, "human": is_taught}, recording.ends, {"rate_hz": rate_hz})
    episodes = [
        i for i in range(int(np.searchsorted(recording.ends, last, side="right")) + 1)
        if not (recording.episode(i)["human"] == 2).any()
    ]  # fmt: skip
    return selected.select(episodes), ticks / rate_hz / 60
