"""Interventions: a person takes the robot over from a policy, corrects it, and hands it back.

The control loop, its limits and its recording continue. Recorded ticks are marked as human, so that
a policy can be trained on them (HG-DAgger, Kelly et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ebt_policy.real_robot.action_source import ActionSource, ChunkTransition, Plan
from ebt_policy.real_robot.safety import Motion


class InterventionSource(ActionSource):
    """A policy as an action source, from which a person can take over at any tick.

    Args:
        policy: action source in normal operation.
        person: action source during an intervention.
        wants_control: whether the person wants to move the robot; called once per tick.
    """

    def __init__(
        self, policy: ActionSource, person: ActionSource, wants_control: Callable[[], bool]
    ) -> None:
        # The properties below return the plan, the transitions and the latencies of the policy.
        self.dt, self.worker, self.is_human = policy.dt, policy.worker, False
        self.policy, self.person, self._wants_control = policy, person, wants_control

    @property
    def plan(self) -> Plan | None:  # type: ignore[override]
        """The plan of the policy; None while a person moves the robot."""
        return None if self.is_human else self.policy.plan

    @property
    def transitions(self) -> list[ChunkTransition]:  # type: ignore[override]
        """The transitions between plans of the policy."""
        return self.policy.transitions

    @property
    def latencies(self) -> list[float]:  # type: ignore[override]
        """The latencies of the policy's predictions, s."""
        return self.policy.latencies

    def warm_up(self, values: dict[str, np.ndarray], position: np.ndarray) -> None:
        self.policy.warm_up(values, position)
        self.person.warm_up(values, position)

    def reset(self, seed: int) -> None:
        self.is_human = False
        self.policy.reset(seed)
        self.person.reset(seed)

    def restart(self) -> None:
        self.policy.restart()
        self.person.restart()

    def observe(self, values: dict[str, np.ndarray]) -> None:
        if (is_human := self._wants_control()) != self.is_human:
            self.is_human = is_human
            # Whoever takes over starts from the robot's present motion.
            (self.person if is_human else self.policy).restart()
        self.policy.observe(values)
        self.person.observe(values)

    def action(self, tick: int, motion: Motion) -> np.ndarray | None:
        return (self.person if self.is_human else self.policy).action(tick, motion)

    def command_sent(self, tick: int, command: np.ndarray) -> None:
        self.policy.command_sent(tick, command)
        self.person.command_sent(tick, command)

    def hold_reason(self, tick: int) -> str:
        return "" if self.is_human else self.policy.hold_reason(tick)

    def has_recovered(self) -> bool:
        return self.policy.has_recovered()
