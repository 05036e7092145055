"""From observations to a command for every tick: chunks, predicted while the last one is executed.

Ticks are counted; tick k is due at a fixed time, so every action of a chunk has an absolute target
time, and what arrives late is only dropped where its time is over. T, To, Ta, A as in `Policy`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from ebt_policy.config import FloatOrInfinity
from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.rollout import batch_observations, noise_seed
from ebt_policy.errors import ConfigError
from ebt_policy.policies import Policy
from ebt_policy.policies.base import Chunk
from ebt_policy.policies.chunk_constraints import ChunkConstraints
from ebt_policy.policies.energy import EnergyPolicy
from ebt_policy.real_robot.clock import Clock
from ebt_policy.real_robot.inference_worker import Background, Done
from ebt_policy.real_robot.safety import ChunkProjection, Limits, Motion

WARM_UPS = 6
WARM_UP_S = 300.0  # compiling takes a minute or two
LATENCIES = 10  # the longest of the last so many predictions is what the next is expected to take


class PolicyError(RuntimeError):
    """The policy failed, or predicted what is no chunk of actions."""


@dataclass(frozen=True)
class Execution:
    """How chunks are executed.

    Args:
        mode: "blocking": the next chunk is predicted when the last one was executed, and the robot
            stands meanwhile. "async": it is predicted before that, and takes over where it arrives.
            "frozen": likewise, and it is made to begin with the actions that are executed until
            then, so that it goes on where the last one was going (real-time chunking, Black et al.
            2025, here as a frozen prefix of the descent).
        warm: start the descent of an energy policy from the chunk before (see `EnergyInference`).
        deadline_s: of a prediction; an energy policy gives its best chunk until then.
        wait: the share of a tick for which a command waits for a prediction that it needs.
        surprise: hold the robot when what is left of the last plan is less likely than the new one
            by more than this, in the energy by which candidates compare; infinite only measures it,
            None does not (energy policies; README.md has how well it tells what is unexpected).
    """

    mode: Literal["blocking", "async", "frozen"] = "frozen"
    warm: bool = False
    deadline_s: float | None = None
    wait: float = 0.5
    surprise: FloatOrInfinity | None = None

    def __post_init__(self) -> None:
        if self.surprise is not None and not self.surprise > 0:
            raise ConfigError(f"execution.surprise must be positive, got {self.surprise}.")
        if self.mode not in ("blocking", "async", "frozen"):
            raise ConfigError(f"execution.mode must be blocking, async or frozen, got {self.mode}.")
        if not 0 <= self.wait < 1:
            raise ConfigError(f"execution.wait must be in [0, 1) of a tick, got {self.wait}.")
        if self.deadline_s is not None and not 0 < self.deadline_s < math.inf:
            raise ConfigError(
                f"execution.deadline_s must be positive and finite, got {self.deadline_s}."
            )


@dataclass(frozen=True)
class Plan:
    """Actions of consecutive ticks.

    Attributes:
        first: tick of ``actions[0]``.
        actions: (n, A).
        start: the first tick with an action that was chosen here, not committed before.
        energy, steps: of the chunk; None and 0 from policies that have none.
        seconds: that its prediction took.
        surprise: see `Execution`; None where it was not measured.
    """

    first: int
    actions: np.ndarray
    start: int
    energy: float | None
    steps: int
    seconds: float
    surprise: float | None = None

    def at(self, tick: int) -> np.ndarray | None:
        index = tick - self.first
        return self.actions[index] if 0 <= index < len(self.actions) else None


@dataclass(frozen=True)
class ChunkTransition:
    """Where one chunk took over from another.

    Attributes:
        tick: the first of the new chunk.
        jump: (A,) its action minus the old chunk's for the same tick.
        kink: (A,) change of the commands' travel from one tick to the next, there.
    """

    tick: int
    jump: np.ndarray
    kink: np.ndarray


class ActionSource(ABC):
    """Who has the action of each tick: a policy's `Planner`, a recording, a person's hand.

    Args:
        dt: seconds from tick to tick.
        background: where predictions run, idle where there are none.

    Attributes:
        plan: the one in force.
        seams: of all plans of the episode.
        latencies: of all predictions so far, seconds.
    """

    def __init__(self, dt: float, background: Background) -> None:
        self.dt, self.background = dt, background
        self.plan: Plan | None = None
        self.seams: list[ChunkTransition] = []
        self.latencies: list[float] = []

    def warm_up(self, values: dict[str, np.ndarray], position: np.ndarray) -> None:
        """Whatever is slow the first time, before motion is allowed."""
        return

    def reset(self, seed: int) -> None:
        """Before an episode."""
        self.begin()

    @abstractmethod
    def begin(self) -> None:
        """The robot stands and is to move from here on."""

    def observe(self, values: dict[str, np.ndarray]) -> None:
        """The observation at a tick, before its `action`."""
        return

    @abstractmethod
    def action(self, tick: int, motion: Motion) -> np.ndarray | None:
        """The action (A,) of a tick, None while there is none; motion is that of the commands."""

    def sent(self, tick: int, command: np.ndarray) -> None:
        """What was executed at a tick."""
        return

    def doubt(self, tick: int) -> str:
        """Why the robot should rather be held from this tick on; "" if it should not."""
        return ""


class Recorded(ActionSource):
    """Actions (n, A) that were recorded, one a tick, whatever is observed."""

    def __init__(self, actions: np.ndarray, dt: float, background: Background) -> None:
        super().__init__(dt, background)
        self._actions = actions

    def __len__(self) -> int:
        return len(self._actions)

    def begin(self) -> None:
        """From the first action on, also after a hold."""
        self.plan = None

    def action(self, tick: int, motion: Motion) -> np.ndarray | None:
        if self.plan is None:
            self.plan = Plan(tick, self._actions, tick, energy=None, steps=0, seconds=0.0)
        return self.plan.at(tick)


class Planner(ActionSource):
    """Asks a policy for chunks in time, and has the action of each tick.

    Args:
        policy: of any kind.
        limits: that chunks are made to keep.
        dt: seconds from tick to tick.
        background: where predictions run.
        clock: the loop's.
        how: options.
    """

    def __init__(
        self,
        policy: Policy,
        limits: Limits,
        dt: float,
        background: Background,
        clock: Clock,
        how: Execution,
    ) -> None:
        s = policy.shape
        if s.action_dim != len(limits.names):
            raise ConfigError(
                f"the policy has {s.action_dim} numbers in an action, the robot "
                f"{len(limits.names)} ({', '.join(limits.names)})."
            )
        if how.surprise is not None and not isinstance(policy, EnergyPolicy):
            raise ConfigError("execution.surprise is for energy policies; leave it out.")
        super().__init__(dt, background)
        self.policy, self.limits, self.how, self._clock = policy, limits, how, clock
        self._bounds = limits.bounds(policy.device)
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Before an episode, whose noise depends on its seed alone."""
        self._generator = torch.Generator().manual_seed(noise_seed(seed))
        self.seams = []
        self.begin()

    def begin(self) -> None:
        """The robot stands and is to move from here on: forget what was seen and planned."""
        self.background.abandon()
        self._seen: deque[dict[str, np.ndarray]] = deque(maxlen=self.policy.shape.n_obs_steps)
        self._sent: dict[int, np.ndarray] = {}
        self.plan = None
        self._asked = (0, 0)  # at which tick, and how many actions were committed from there
        self._stood = 0  # ticks without an action since then

    def warm_up(self, values: dict[str, np.ndarray], position: np.ndarray) -> None:
        """Predict with real shapes, before motion is allowed: the first calls are slow.

        Args:
            values, position: of an observation.

        Raises:
            PolicyError: it cannot.
        """
        self.reset(0)
        self.observe(values)
        self._sent = {-1: position}
        for i in range(WARM_UPS):  # with and without what is committed
            self.background.submit(self._job(0, Motion.rest(position), committed=i % 2))
            self.background.wait(self._clock.now() + WARM_UP_S)
            if (done := self.background.take()) is None:
                raise PolicyError(f"the policy did not answer within {WARM_UP_S} s.")
            self._chunk(done)
            self.latencies.append(done.seconds)
        self.latencies = self.latencies[-2:]
        self.reset(0)

    def observe(self, values: dict[str, np.ndarray]) -> None:
        """The observation at a tick; the first fills the missing past."""
        for _ in range(1 if self._seen else self._seen.maxlen or 1):
            self._seen.append(values)

    def action(self, tick: int, motion: Motion) -> np.ndarray | None:
        """The action (A,) of a tick, None while there is none.

        Args:
            motion: of the commands so far.

        Raises:
            PolicyError: the policy failed.
        """
        self._collect(tick)
        if self._due(tick):
            self._ask(tick, motion)
        if self._planned(tick) is None:
            self.background.wait(self._clock.now() + self.how.wait * self.dt)
            self._collect(tick)
        action = self._planned(tick)
        self._stood += action is None
        return action

    def sent(self, tick: int, command: np.ndarray) -> None:
        """What was executed at a tick, which is where the next chunk goes on."""
        self._sent[tick] = command
        self._sent.pop(tick - 2 * self.policy.shape.horizon, None)
        if self.seams and self.seams[-1].tick == tick:
            last, before = (self._sent.get(tick - i, command) for i in (1, 2))
            self.seams[-1] = replace(self.seams[-1], kink=command - 2 * last + before)

    def doubt(self, tick: int) -> str:
        """See `Execution.surprise`."""
        limit, plan = self.how.surprise, self.plan
        if limit is None or plan is None or plan.surprise is None or plan.start != tick:
            return ""
        if plan.surprise <= limit:
            return ""
        return f"the policy is surprised: by {plan.surprise:.1f}, allowed are {limit:g}"

    def _planned(self, tick: int) -> np.ndarray | None:
        """The action of a tick, None where there is none, or a blocking robot has to stand."""
        plan, blocking = self.plan, self.how.mode == "blocking"
        if plan is None or (blocking and tick >= plan.start + self.policy.shape.n_action_steps):
            return None
        return plan.at(tick)

    @property
    def _delay(self) -> int:
        """Ticks that the next prediction is expected to take."""
        if self.how.mode == "blocking":
            return 0
        longest = max(self.latencies[-LATENCIES:], default=0.0)
        return max(1, math.ceil(longest / self.dt - 1e-9))

    def _due(self, tick: int) -> bool:
        if self.background.since is not None or not self._seen:
            return False
        if self.plan is None or self._planned(tick) is None:
            return True
        return tick - self.plan.start >= self.policy.shape.n_action_steps - self._delay

    def _ask(self, tick: int, motion: Motion) -> None:
        committed = 0
        if self.plan is not None and self._planned(tick) is not None:
            left = self.plan.first + len(self.plan.actions) - tick
            free = self.policy.shape.horizon - self.policy.shape.n_obs_steps
            committed = min(self._delay, left, free)
        self._asked, self._stood = (tick, committed), 0
        self.background.submit(self._job(tick, motion, committed))

    def _job(self, tick: int, motion: Motion, committed: int):
        """A prediction as a function without arguments; all that it needs is taken now."""
        s = self.policy.shape
        past = s.n_obs_steps - 1
        obs = batch_observations([EnvSpec.stack_history([*self._seen])])
        known = self._known(tick - past, tick + committed) if committed else []
        prefix = None
        first = past  # of the actions that may still be chosen
        if self.how.mode == "frozen" and known:
            prefix = torch.tensor(np.stack(known), dtype=torch.float32).unsqueeze(0)
            first = len(known)
            travel = known[-1] - known[-2] if len(known) > 1 else motion.travel
            motion = Motion(known[-1], travel)
        warm, left = None, 0
        if (self.how.warm or self.how.surprise is not None) and self.plan is not None and committed:
            earlier = self._known(tick - past, tick - past + s.horizon)
            left = len(earlier)
            earlier += [earlier[-1]] * (s.horizon - left)
            warm = torch.tensor(np.stack(earlier), dtype=torch.float32).unsqueeze(0)

        project = ChunkProjection(self.limits, self._bounds, motion, self.dt, first)
        generator, how, policy = self._generator, self.how, self.policy

        def job() -> tuple[Chunk, float | None]:
            chunk = policy.predict_chunk(
                obs,
                constraints=ChunkConstraints(
                    prefix=prefix,
                    warm_start=warm if how.warm else None,
                    project=project,
                    deadline_s=how.deadline_s,
                ),
                generator=generator,
            )
            if how.surprise is None or warm is None or not isinstance(policy, EnergyPolicy):
                return chunk, None
            # Energies of one observation compare: what is left of the last plan, against the new.
            kept = torch.cat([warm[:, :left].to(chunk.actions), chunk.actions[:, left:]], dim=1)
            old, new = policy.energies(obs, torch.stack([kept, chunk.actions], dim=1))[0].tolist()
            return chunk, old - new

        return job

    def _known(self, start: int, stop: int) -> list[np.ndarray]:
        """What was and is going to be executed from a tick on, as far as that is known."""
        known = []
        for tick in range(start, stop):
            planned = None if self.plan is None else self.plan.at(tick)
            action = self._sent.get(tick, planned)
            if action is None:
                if known:
                    break
                action = self._sent[min(self._sent)] if self._sent else None
                if action is None:
                    break
            known.append(action)
        return known

    def _collect(self, tick: int) -> None:
        if (done := self.background.take()) is None:
            return
        chunk, surprise = self._chunk(done)
        self.latencies.append(done.seconds)
        asked, committed = self._asked
        actions = chunk.actions[0].double().cpu().numpy()[self.policy.shape.n_obs_steps - 1 :]
        # What is frozen goes on as it was: the new chunk begins behind it.
        start = max(tick, asked + committed) if self.how.mode == "frozen" else tick
        before = None if self.plan is None else self.plan.at(start)
        self.plan = Plan(
            first=asked + self._stood,  # only what was executed meanwhile is dropped
            actions=actions,
            start=start,
            energy=None if chunk.energy is None else float(chunk.energy[0]),
            steps=int(chunk.steps_used[0]),
            seconds=done.seconds,
            surprise=surprise,
        )
        new = self.plan.at(start)
        if new is not None and before is not None:
            self.seams.append(ChunkTransition(start, new - before, np.zeros_like(new)))

    def _chunk(self, done: Done) -> tuple[Chunk, float | None]:
        if (error := done.error) is not None:
            raise PolicyError(f"the policy failed ({type(error).__name__}: {error}).") from error
        chunk, surprise = done.value
        shape = tuple(chunk.actions.shape)
        wanted = (1, self.policy.shape.horizon, self.policy.shape.action_dim)
        if shape != wanted:
            raise PolicyError(f"the policy predicted {shape} instead of {wanted}.")
        if not bool(chunk.actions.isfinite().all()):
            raise PolicyError("the policy predicted NaN or infinity.")
        return chunk, surprise
