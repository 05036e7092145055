"""The interface of action sources, which provide the action of each tick, and recorded actions.

The other action sources are `planner.Planner` for policies and `teleop_device.TeleopDevice` for a
person.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from ebt_policy.real_robot.inference_worker import InferenceWorker
from ebt_policy.real_robot.safety import Motion


@dataclass(frozen=True)
class Plan:
    """The actions of consecutive ticks.

    Attributes:
        first: tick of ``actions[0]``.
        actions: (n, A).
        start: first tick whose action is taken from this plan.
        energy: energy of the chunk; None without an energy policy.
        steps: number of refinement passes of the prediction; 0 without a policy.
        seconds: duration of the prediction.
        inconsistency: energy of the rest of the last plan minus the energy of this one, in nats
            (see `ExecutionOptions.max_plan_inconsistency`); None if it was not measured.
        cost: sum of the costs of the chunk, nats; None without costs.
    """

    first: int
    actions: np.ndarray
    start: int
    energy: float | None
    steps: int
    seconds: float
    inconsistency: float | None = None
    cost: float | None = None

    def action_at(self, tick: int) -> np.ndarray | None:
        """Return the action (A,) of a tick, None outside the plan."""
        index = tick - self.first
        return self.actions[index] if 0 <= index < len(self.actions) else None


@dataclass(frozen=True)
class ChunkTransition:
    """The transition from one chunk to the next.

    Attributes:
        tick: first tick of the new chunk.
        jump: (A,) action of the new chunk minus the action of the old chunk at this tick.
        second_difference: (A,) change of the travel between commands at this tick.
    """

    tick: int
    jump: np.ndarray
    second_difference: np.ndarray


class ActionSource(ABC):
    """Base of the action sources, which return the action of each tick.

    Args:
        dt: time from tick to tick, s.
        worker: worker that runs predictions; idle if there are none.

    Attributes:
        plan: current plan, None without one.
        transitions: transitions between the plans of the episode.
        latencies: latencies of all predictions so far, s.
        is_human: whether a person moves the robot at this tick.
    """

    def __init__(self, dt: float, worker: InferenceWorker) -> None:
        self.dt, self.worker = dt, worker
        self.plan: Plan | None = None
        self.transitions: list[ChunkTransition] = []
        self.latencies: list[float] = []
        self.is_human = False

    def warm_up(self, values: dict[str, np.ndarray], position: np.ndarray) -> None:
        """Run everything once that is slow the first time, before the robot may move.

        Args:
            values, position: attributes of an `Observation`.
        """
        return

    def reset(self, seed: int) -> None:
        """Prepare for an episode."""
        self.restart()

    @abstractmethod
    def restart(self) -> None:
        """Forget all plans, because the robot was stopped or held."""

    def observe(self, values: dict[str, np.ndarray]) -> None:
        """Receive the observation of a tick, before `action` is called for it."""
        return

    @abstractmethod
    def action(self, tick: int, motion: Motion) -> np.ndarray | None:
        """Return the action (A,) of a tick, None if there is none yet.

        Args:
            tick: number of the tick.
            motion: motion of the commands so far.
        """

    def command_sent(self, tick: int, command: np.ndarray) -> None:
        """Receive the command (A,) of a tick."""
        return

    def hold_reason(self, tick: int) -> str:
        """Return why the robot must be held from this tick on; "" if it need not."""
        return ""

    def has_recovered(self) -> bool:
        """Return whether the cause of the last `hold_reason` has ended without a person."""
        return False


class RecordedActions(ActionSource):
    """Recorded actions (n, A), one for each tick, independent of the observations."""

    def __init__(self, actions: np.ndarray, dt: float, worker: InferenceWorker) -> None:
        super().__init__(dt, worker)
        self._actions = actions

    def __len__(self) -> int:
        return len(self._actions)

    def restart(self) -> None:
        """Start from the first action again, also after a hold."""
        self.plan = None

    def action(self, tick: int, motion: Motion) -> np.ndarray | None:
        if self.plan is None:
            self.plan = Plan(tick, self._actions, tick, energy=None, steps=0, seconds=0.0)
        return self.plan.action_at(tick)
