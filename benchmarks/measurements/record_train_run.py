"""Record, train and run, for simulated robots with cameras or with joint positions as actions.

A scripted person, who knows the whole scene, demonstrates on a robot that observes camera frames
and its own position, or joint positions. The control loop records. ``task=dataset`` trains a policy
on the recording, and ``ebt_policy.real_robot.run`` runs it in real time. The arm with cameras runs
in simulated time, because two CPU cores cannot render both cameras at 20 Hz.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measurements.real_time import run_robot, simulated_node
from benchmarks.measurements.teleop_end_to_end import FIRST_SEED, MAX_EPISODES, successful
from benchmarks.study import StudyContext, TrainingCommand
from benchmarks.training import train_all
from ebt_policy.data import push_t
from ebt_policy.data.dataset import open_dataset
from ebt_policy.envs.env_spec import EVALUATION_SEED, EnvSpec
from ebt_policy.io.atomic_write import atomic_write
from ebt_policy.policies import ChunkPredictor, load_policy
from ebt_policy.policies.entries import load_policy_entries
from ebt_policy.real_robot.action_source import ActionSource
from ebt_policy.real_robot.clock import Clock, MonotonicClock, SimulatedClock
from ebt_policy.real_robot.episode_result import EpisodeResult
from ebt_policy.real_robot.episode_runner import EpisodeRunner, observation_shapes, tick_seconds
from ebt_policy.real_robot.execution import ExecutionOptions
from ebt_policy.real_robot.inference_worker import InferenceWorker, SimulatedWorker, ThreadWorker
from ebt_policy.real_robot.planner import Planner
from ebt_policy.real_robot.report import summarize
from ebt_policy.real_robot.robots import Robot, load_robot
from ebt_policy.real_robot.safety import Motion

PREDICTION_S = 0.02  # simulated time of a prediction
SIMULATED_TIME = ("sim_lift_image",)  # robots whose frames take too long for real time
Values = dict[str, np.ndarray]


def scene_of_push_t(values: Values) -> np.ndarray:
    """Return the keypoints of Push-T (20,) from the recorded values with the block's pose."""
    state = values.get("state")
    if state is None:  # through ROS
        state = np.concatenate([values["obs"], values["block"]])
    return push_t.observation(state).astype(np.float32)


class SeeingPlanner(Planner):
    """A planner of a policy that observes the scene instead of the cameras.

    Args:
        see: function that returns the policy's "obs" from the values of an observation.
    """

    def __init__(self, see: Callable[[Values], np.ndarray], *args: Any) -> None:
        self._see = see
        super().__init__(*args)

    def observe(self, values: Values) -> None:
        super().observe({"obs": self._see(values)})


def state_of_lift(values: Values, last: Values | None, dt: float) -> np.ndarray:
    """Return the state of Lift's environment (31,) from the values of an observation.

    Through ROS, all velocities are zero, except the fingers' velocities.

    Args:
        values: values of the observation.
        last: values of the observation before it; None for the first one.
        dt: time between the observations, s.
    """
    if "state" in values:
        return values["state"]
    obs = values["obs"].astype(np.float64)  # seven joints, gripper, finger, pose of the cube
    finger = obs[8]
    speed = 0.0 if last is None else (finger - last["obs"][8]) / dt
    return np.concatenate(
        [[0.0], obs[:7], [finger, -finger], obs[9:], np.zeros(7), [speed, -speed], np.zeros(6)]
    )


class ExpertSource(ActionSource):
    """The scripted expert of an arm's task, which acts in a copy of the scene.

    Args:
        scene: an environment of the same task and actions.
    """

    def __init__(self, scene: Any, dt: float, worker: InferenceWorker) -> None:
        super().__init__(dt, worker)
        self._scene = scene
        scene.reset(seed=0)

    def reset(self, seed: int) -> None:
        self._last: Values | None = None
        self._act = self._scene.expert(np.random.default_rng(seed))

    def restart(self) -> None:
        """Keep the current state of the scene."""

    def observe(self, values: Values) -> None:
        self._scene.restore(state_of_lift(values, self._last, self.dt))
        self._scene.sim_env.sim.forward()
        self._last = values

    def action(self, tick: int, motion: Motion) -> np.ndarray:
        return np.asarray(self._act(), dtype=np.float64)


def record_train_run(context: StudyContext) -> dict[str, Any]:
    """Record, train and run on each robot; return the recording, the scores and the timing.

    The study has the options ``robots``, ``person`` (a checkpoint of Push-T), ``demonstrations``,
    ``updates`` and ``episodes``. Finished steps are not repeated.
    """
    options, folder = context.options, context.folder
    folder.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name in options.robots.split(","):
        store = folder / f"recorded-{name}"
        if not store.exists():
            with simulated_node(name):
                record(name, options.person, options.demonstrations, store)
        overrides = (
            "task=dataset", f"task.path={store}", "model=ebt", f"train.steps={options.updates}",
            "train.minutes=null", *shlex.split(options.overrides),
        )  # fmt: skip
        training = TrainingCommand(name, 0, folder, overrides)
        train_all([[training]], parallel=1)
        summary_file = folder / "run" / name / "summary.json"
        if not summary_file.exists() and name in SIMULATED_TIME:
            policy = load_policy(training.run_dir)
            summary = summarize(run_in_simulated_time(name, policy, options.episodes))
            # Simulated times are not results.
            summary |= {"late_ms": None, "latency_ms": None, "rate_hz": None}
            summary_file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(summary_file, json.dumps(summary))
        elif not summary_file.exists():
            with simulated_node(name):
                run_robot(name, str(training.run_dir), options.episodes, folder / "run")
        with open_dataset(store) as dataset:
            recorded = {"episodes": len(dataset), "rows": int(dataset.lengths.sum())}
        entries[name] = {"recorded": recorded, **json.loads(summary_file.read_text())}
    return {"updates": options.updates, "entries": entries, "command": context.command}


def run_in_simulated_time(name: str, policy: ChunkPredictor, episodes: int) -> list[EpisodeResult]:
    """Run a policy on a robot with a simulated clock, and return the results of its episodes."""
    torch.set_num_threads(1)
    robot, clock = load_robot(name), SimulatedClock()
    worker = SimulatedWorker(clock, lambda: PREDICTION_S)
    dt = tick_seconds(robot, 1.0)
    planner = Planner(policy, robot.safety, dt, worker, clock, ExecutionOptions())
    driver, shapes = robot.make_driver(clock), observation_shapes(policy)
    runner = EpisodeRunner(robot, driver, planner, clock, shapes, watchdog=False)
    runner.prepare()
    results = []
    for seed in range(EVALUATION_SEED, EVALUATION_SEED + episodes):
        results.append(runner.run_episode(seed))
        print(f"{name}: episode {len(results)} of {episodes}", flush=True)
    runner.close()
    return results


def record(name: str, person: str, num_episodes: int, store: Path) -> None:
    """Record successful episodes of a scripted person; time is simulated, except through ROS."""
    torch.set_num_threads(1)
    robot = load_robot(name)
    is_simulated = not name.startswith("ros2_")
    clock: Clock = SimulatedClock() if is_simulated else MonotonicClock()
    worker: InferenceWorker = (
        SimulatedWorker(clock, lambda: PREDICTION_S)
        if isinstance(clock, SimulatedClock)
        else ThreadWorker(clock)
    )
    driver = robot.make_driver(clock)
    source = demonstrator(robot, person, worker, clock)
    with new_recording(store) as partial:
        runner = EpisodeRunner(
            robot, driver, source, clock, {}, record=partial, watchdog=not is_simulated
        )
        runner.prepare()
        kept = 0
        with runner.watchdog or nullcontext():
            for seed in range(FIRST_SEED, FIRST_SEED + MAX_EPISODES):
                kept += runner.run_episode(seed, should_keep=successful).kept
                print(f"{name}: {kept} of {num_episodes} demonstrations", flush=True)
                if kept >= num_episodes:
                    break
        runner.close()
        require_count(kept, num_episodes, "demonstrations")


@contextmanager
def new_recording(store: Path) -> Iterator[Path | None]:
    """Yield the folder to record into, which becomes `store` at the end; None if `store` exists.

    What an interrupted program recorded is deleted, because its episodes would occur twice.
    """
    if store.exists():
        yield None
        return
    partial = store.with_name(f"{store.name}-partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.with_name(f".{partial.name}.journal").unlink(missing_ok=True)
    yield partial
    partial.rename(store)


def require_count(count: int, needed: int, what: str) -> None:
    """Check that a recording is complete.

    Raises:
        SystemExit: it has too few parts.
    """
    if count < needed:
        sys.exit(f"error: only {count} of {needed} {what} were recorded.")


def demonstrator(robot: Robot, person: str, worker: InferenceWorker, clock: Clock) -> ActionSource:
    """Return the scripted person: a policy for Push-T, the environment's expert for other tasks."""
    dt = tick_seconds(robot, 1.0)
    if "push_t" not in robot.name:
        env = robot.driver["simulates"]["env"] if "simulates" in robot.driver else robot.driver
        spec = EnvSpec(env["env_id"], 1, kwargs={"actions": env["kwargs"]["actions"]})
        return ExpertSource(spec.make().unwrapped, dt, worker)
    policy = load_policy_entries([person], torch.device("cpu"))[0].model
    execution = ExecutionOptions(mode="async")
    return SeeingPlanner(scene_of_push_t, policy, robot.safety, dt, worker, clock, execution)
