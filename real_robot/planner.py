"""A policy as an action source: the next chunk is predicted while the last one is executed.

Tick k is due at a fixed time, so every action of a chunk has an absolute target time. A late chunk
loses only the actions whose ticks are over. T, To, Ta and A are as in `Policy`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.rollout import batch_observations, noise_seed
from ebt_policy.errors import ConfigError
from ebt_policy.policies import ChunkPredictor, PolicyUnavailable
from ebt_policy.policies.chunk import Chunk
from ebt_policy.policies.chunk_constraints import ChunkConstraints
from ebt_policy.policies.costs import CostError, CostFunction
from ebt_policy.policies.energy import EnergyPolicy
from ebt_policy.real_robot.action_source import ActionSource, ChunkTransition, Plan
from ebt_policy.real_robot.clock import Clock
from ebt_policy.real_robot.errors import PolicyError
from ebt_policy.real_robot.execution import ExecutionOptions
from ebt_policy.real_robot.inference_worker import InferenceWorker, JobResult
from ebt_policy.real_robot.limits import Limits
from ebt_policy.real_robot.safety import ChunkProjection, Motion

WARM_UP_PREDICTIONS = 6
WARM_UP_TIMEOUT_S = 300.0  # Compilation takes a minute or two.
# The expected latency of a prediction is the longest of this number of latest predictions.
LATENCY_WINDOW = 10
Prediction = tuple[Chunk, float | None]  # a chunk and its plan inconsistency, see `Plan`


class Planner(ActionSource):
    """An action source that schedules the predictions of a policy.

    Args:
        policy: any policy, also one on a server.
        limits: limits of the robot, which are also constraints of the predicted chunks.
        dt: time from tick to tick, s.
        worker: worker that runs the predictions.
        clock: clock of the control loop.
        execution: see `ExecutionOptions`.
        costs: costs of the chunks, see `ebt_policy.policies.costs`.

    Raises:
        ConfigError: the policy does not fit the robot or the options.
    """

    def __init__(
        self,
        policy: ChunkPredictor,
        limits: Limits,
        dt: float,
        worker: InferenceWorker,
        clock: Clock,
        execution: ExecutionOptions,
        costs: Sequence[CostFunction] = (),
    ) -> None:
        action_dim = policy.shape.action_dim
        if action_dim != len(limits.names):
            raise ConfigError(
                f"the policy's actions have {action_dim} entries, but the robot's have "
                f"{len(limits.names)} ({', '.join(limits.names)}); use another checkpoint or robot."
            )
        if execution.max_plan_inconsistency is not None and not isinstance(policy, EnergyPolicy):
            raise ConfigError(
                "execution.max_plan_inconsistency is for energy policies; use "
                "execution.max_plan_inconsistency=null."
            )
        if costs and not policy.supports_costs:
            raise ConfigError("this policy does not support robot.costs; remove them.")
        if not costs and (execution.budget_nats is not None or execution.max_rounds > 1):
            raise ConfigError("execution.budget_nats and execution.max_rounds need robot.costs.")
        super().__init__(dt, worker)
        self.costs = tuple(costs)
        self.policy, self.limits, self.execution, self._clock = policy, limits, execution, clock
        self._bounds = limits.bounds(policy.device)
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Prepare for an episode. The noise of its predictions depends on the seed alone."""
        self._generator = torch.Generator().manual_seed(noise_seed(seed))
        self.transitions = []
        self.restart()

    def restart(self) -> None:
        """Forget all observations and plans, because the robot was stopped or held."""
        self.worker.abandon()
        n_obs_steps = self.policy.shape.n_obs_steps
        self._history: deque[dict[str, np.ndarray]] = deque(maxlen=n_obs_steps)
        self._sent: dict[int, np.ndarray] = {}
        self.plan = None
        self._requested_at = 0  # tick of the last request of a prediction
        self._num_committed = 0  # number of actions that were committed from that tick on
        # Error of the last prediction that holds the robot instead of stopping it.
        self._failure: CostError | PolicyUnavailable | None = None
        self._standing_ticks = 0  # number of ticks without an action since that tick

    def warm_up(self, values: dict[str, np.ndarray], position: np.ndarray) -> None:
        """Predict with real shapes before the robot may move, because the first calls are slow.

        Args:
            values, position: attributes of an `Observation`.

        Raises:
            PolicyError: the policy fails or does not answer.
        """
        self.reset(0)
        self.observe(values)
        self._sent = {-1: position}
        for i in range(WARM_UP_PREDICTIONS):  # alternately without and with committed actions
            # There are separate compiled programs for a descent with and without a warm start.
            if i == 1 and self.execution.warm:
                last = np.tile(position, (self.policy.shape.horizon, 1))
                self.plan = Plan(0, last, 0, energy=None, steps=0, seconds=0.0)
            self.worker.submit(self._job(0, Motion.at_rest(position), num_committed=i % 2))
            self.worker.wait(self._clock.now() + WARM_UP_TIMEOUT_S)
            if (result := self.worker.take_result()) is None:
                raise PolicyError(f"the policy did not answer within {WARM_UP_TIMEOUT_S:g} s.")
            self._check_prediction(result)
            self.latencies.append(result.seconds)
        self.latencies = self.latencies[-2:]
        self.reset(0)

    def observe(self, values: dict[str, np.ndarray]) -> None:
        """Add the observation of a tick to the history; the first one is repeated as the past."""
        for _ in range(1 if self._history else self._history.maxlen or 1):
            self._history.append(values)

    def action(self, tick: int, motion: Motion) -> np.ndarray | None:
        """Return the action (A,) of a tick, None if there is none yet.

        Args:
            tick: number of the tick.
            motion: motion of the commands so far.

        Raises:
            PolicyError: the policy failed.
        """
        self._collect(tick)
        if self._failure is not None:
            return self._planned_action(tick)
        if self._is_request_due(tick):
            self._request(tick, motion)
        if self._planned_action(tick) is None:
            self.worker.wait(self._clock.now() + self.execution.max_wait_fraction * self.dt)
            self._collect(tick)
        action = self._planned_action(tick)
        self._standing_ticks += action is None
        return action

    def command_sent(self, tick: int, command: np.ndarray) -> None:
        """Store the command (A,) of a tick, from which the next chunk continues."""
        self._sent[tick] = command
        self._sent.pop(tick - 2 * self.policy.shape.horizon, None)
        if self.transitions and self.transitions[-1].tick == tick:
            last, before = (self._sent.get(tick - i, command) for i in (1, 2))
            difference = command - 2 * last + before
            self.transitions[-1] = replace(self.transitions[-1], second_difference=difference)

    def hold_reason(self, tick: int) -> str:
        """Return why the robot must be held, for example for a cost; "" if it need not."""
        if self._failure is not None:
            return str(self._failure)
        limit, plan = self.execution.max_plan_inconsistency, self.plan
        if limit is None or plan is None or plan.inconsistency is None or plan.start != tick:
            return ""
        if plan.inconsistency <= limit:
            return ""
        return (
            f"plan inconsistency {plan.inconsistency:.1f} exceeds "
            f"execution.max_plan_inconsistency={limit:g}"
        )

    def has_recovered(self) -> bool:
        """Return whether the robot was held because of a server that is connected again."""
        return isinstance(self._failure, PolicyUnavailable) and self.policy.is_available

    def _planned_action(self, tick: int) -> np.ndarray | None:
        """Return the action of a tick in the plan, None if there is none.

        A blocking robot executes only the first Ta actions of a plan.
        """
        plan, blocking = self.plan, self.execution.mode == "blocking"
        if plan is None or (blocking and tick >= plan.start + self.policy.shape.n_action_steps):
            return None
        return plan.action_at(tick)

    @property
    def _expected_delay(self) -> int:
        """The expected duration of the next prediction, in ticks."""
        if self.execution.mode == "blocking":
            return 0
        longest = max(self.latencies[-LATENCY_WINDOW:], default=0.0)
        return max(1, math.ceil(longest / self.dt - 1e-9))

    def _is_request_due(self, tick: int) -> bool:
        if self.worker.started_at is not None or not self._history:
            return False
        if self.plan is None or self._planned_action(tick) is None:
            return True
        executed = tick - self.plan.start
        return executed >= self.policy.shape.n_action_steps - self._expected_delay

    def _request(self, tick: int, motion: Motion) -> None:
        """Start the prediction of the next chunk."""
        num_committed = 0
        if self.plan is not None and self._planned_action(tick) is not None:
            remaining = self.plan.first + len(self.plan.actions) - tick
            future = self.policy.shape.horizon - self.policy.shape.n_obs_steps
            num_committed = min(self._expected_delay, remaining, future)
        self._requested_at, self._num_committed, self._standing_ticks = tick, num_committed, 0
        self.worker.submit(self._job(tick, motion, num_committed))

    def _job(self, tick: int, motion: Motion, num_committed: int) -> Callable[[], Prediction]:
        """Return a prediction as a function without arguments; its inputs are copied now.

        Args:
            tick: tick of the newest observation.
            motion: motion of the commands before this tick.
            num_committed: number of actions that are committed from this tick on.
        """
        shape = self.policy.shape
        first_tick = tick - (shape.n_obs_steps - 1)  # The chunk begins at the oldest observation.
        obs = batch_observations([EnvSpec.stack_history([*self._history])])
        committed = (
            self._executed_actions(first_tick, tick + num_committed) if num_committed else []
        )
        prefix = None
        first = shape.n_obs_steps - 1  # index of the first action that is not fixed
        if self.execution.mode == "rtc" and committed:
            prefix = _as_batch(committed)
            first = len(committed)
            travel = committed[-1] - committed[-2] if len(committed) > 1 else motion.travel
            motion = Motion(committed[-1], travel)
        execution = self.execution
        measures_inconsistency = execution.max_plan_inconsistency is not None
        last_chunk, num_known = None, 0  # the last plan at the ticks of this chunk
        if (execution.warm or measures_inconsistency) and self.plan is not None and num_committed:
            last_actions = self._executed_actions(first_tick, first_tick + shape.horizon)
            num_known = len(last_actions)
            last_chunk = _as_batch(last_actions + [last_actions[-1]] * (shape.horizon - num_known))

        project = ChunkProjection(self.limits, self._bounds, motion, self.dt, first)
        generator, policy, costs = self._generator, self.policy, self.costs

        def predict() -> Prediction:
            chunk = policy.predict_chunk(
                obs,
                constraints=ChunkConstraints(
                    prefix=prefix,
                    warm_start=last_chunk if execution.warm else None,
                    project=project,
                    deadline_s=execution.deadline_s,
                    costs=costs,
                    budget_nats=execution.budget_nats,
                    max_rounds=execution.max_rounds,
                ),
                generator=generator,
            )
            if not measures_inconsistency or last_chunk is None:
                return chunk, None
            assert isinstance(policy, EnergyPolicy)
            # Energies are comparable only for the same observation, so the new one is used for
            # both plans. The last plan ends earlier and is completed with the new actions.
            known_actions = last_chunk[:, :num_known].to(chunk.actions)
            last_candidate = torch.cat([known_actions, chunk.actions[:, num_known:]], dim=1)
            candidates = torch.stack([last_candidate, chunk.actions], dim=1)
            last_energy, new_energy = policy.energies(obs, candidates)[0].tolist()
            return chunk, last_energy - new_energy

        return predict

    def _executed_actions(self, start: int, stop: int) -> list[np.ndarray]:
        """Return the executed and planned actions of the ticks from `start` to `stop` - 1.

        The list ends before the first tick without an action. Ticks before the first command get
        the action of that command.
        """
        actions: list[np.ndarray] = []
        for tick in range(start, stop):
            planned = None if self.plan is None else self.plan.action_at(tick)
            action = self._sent.get(tick, planned)
            if action is None and self._sent and tick < min(self._sent):
                action = self._sent[min(self._sent)]
            if action is None:
                break
            actions.append(action)
        return actions

    def _collect(self, tick: int) -> None:
        """Make a new plan from a prediction that has ended, if there is one."""
        if (result := self.worker.take_result()) is None:
            return
        if isinstance(result.error, CostError | PolicyUnavailable):
            self._failure = result.error
            return
        chunk, inconsistency = self._check_prediction(result)
        self.latencies.append(result.seconds)
        actions = chunk.actions[0].double().cpu().numpy()[self.policy.shape.n_obs_steps - 1 :]
        start = tick
        if self.execution.mode == "rtc":  # The new plan starts after the committed actions.
            start = max(tick, self._requested_at + self._num_committed)
        last_action = None if self.plan is None else self.plan.action_at(start)
        self.plan = Plan(
            # Ticks at which the robot waited without an action do not cost actions of the chunk.
            first=self._requested_at + self._standing_ticks,
            actions=actions,
            start=start,
            energy=None if chunk.energy is None else float(chunk.energy[0]),
            steps=int(chunk.steps_used[0]),
            seconds=result.seconds,
            inconsistency=inconsistency,
            cost=None if chunk.cost is None else float(chunk.cost[0]),
        )
        new_action = self.plan.action_at(start)
        if new_action is not None and last_action is not None:
            jump = new_action - last_action
            self.transitions.append(ChunkTransition(start, jump, np.zeros_like(jump)))

    def _check_prediction(self, result: JobResult) -> Prediction:
        """Return the prediction of a job.

        Raises:
            PolicyError: the policy failed, or its chunk has another shape or is not finite.
        """
        if (error := result.error) is not None:
            raise PolicyError(f"the policy failed ({type(error).__name__}: {error}).") from error
        chunk, inconsistency = result.value
        shape = tuple(chunk.actions.shape)
        expected = (1, self.policy.shape.horizon, self.policy.shape.action_dim)
        if shape != expected:
            raise PolicyError(
                f"the policy predicted a chunk of shape {shape} instead of {expected}."
            )
        if not bool(chunk.actions.isfinite().all()):
            raise PolicyError("the policy predicted NaN or infinity.")
        return chunk, inconsistency


def _as_batch(actions: list[np.ndarray]) -> torch.Tensor:
    """Return n actions (A,) as a batch (1, n, A) in float32."""
    return torch.tensor(np.stack(actions), dtype=torch.float32).unsqueeze(0)
