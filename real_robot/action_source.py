"""Where the action of each tick comes from: the interface, and recorded actions behind it.

The other sources are a policy's `planner.Planner` and a person's `teleop.TeleopSource`.
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
        start: the first tick whose action was chosen by this plan; the actions before it were
            committed already.
        energy, steps: of the chunk; None and 0 from policies without an energy.
        seconds: how long the prediction took.
        inconsistency: energy of the rest of the last plan minus that of this one, in nats (see
            `ExecutionOptions.max_plan_inconsistency`); None if it was not measured.
    """

    first: int
    actions: np.ndarray
    start: int
    energy: float | None
    steps: int
    seconds: float
    inconsistency: float | None = None

    def action_at(self, tick: int) -> np.ndarray | None:
        """Return the action (A,) of a tick, None outside of the plan."""
        index = tick - self.first
        return self.actions[index] if 0 <= index < len(self.actions) else None


@dataclass(frozen=True)
class ChunkTransition:
    """The tick at which one chunk takes over from another.

    Attributes:
        tick: the first tick of the new chunk.
        jump: (A,) action of the new chunk minus that of the old chunk for this tick.
        second_difference: (A,) of the commands around this tick: how much travel changes.
    """

    tick: int
    jump: np.ndarray
    second_difference: np.ndarray


class ActionSource(ABC):
    """A source of the action of each tick.

    Args:
        dt: seconds from tick to tick.
        worker: where predictions run; idle where there are none.

    Attributes:
        plan: the current plan.
        transitions: between the plans of the episode.
        latencies: of all predictions so far, s.
    """

    def __init__(self, dt: float, worker: InferenceWorker) -> None:
        self.dt, self.worker = dt, worker
        self.plan: Plan | None = None
        self.transitions: list[ChunkTransition] = []
        self.latencies: list[float] = []

    def warm_up(self, values: dict[str, np.ndarray], position: np.ndarray) -> None:
        """Do whatever is slow the first time, before the robot may move.

        Args:
            values, position: of an `Observation`.
        """
        return

    def reset(self, seed: int) -> None:
        """Prepare for an episode."""
        self.restart()

    @abstractmethod
    def restart(self) -> None:
        """Forget all plans: the robot stands and will move on from its current position."""

    def observe(self, values: dict[str, np.ndarray]) -> None:
        """Take the observation of a tick, before its `action` is asked for."""
        return

    @abstractmethod
    def action(self, tick: int, motion: Motion) -> np.ndarray | None:
        """Return the action (A,) of a tick, None while there is none.

        Args:
            motion: of the commands so far.
        """

    def command_sent(self, tick: int, command: np.ndarray) -> None:
        """Take note of the command (A,) that was sent at a tick."""
        return

    def hold_reason(self, tick: int) -> str:
        """Return why the robot should be held from this tick on; "" if it should not."""
        return ""


class RecordedActions(ActionSource):
    """Recorded actions (n, A), one each tick, whatever is observed."""

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
