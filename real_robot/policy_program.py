"""A policy as one function of tensors, for programs without Python.

The function has the whole prediction: encoding of the observation, all steps with their gradients,
the committed prefix, the limits of a robot, scores and selection. The numbers of steps and
candidates are fixed. Shapes: To `n_obs_steps`, Do observation and A action dimension, T horizon,
H x W pixels of a camera, N noise numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from ebt_policy.energy.sampling import PredrawnNoise
from ebt_policy.energy.tracing import export_tracing
from ebt_policy.errors import ConfigError
from ebt_policy.policies import Policy
from ebt_policy.policies.chunk import Chunk
from ebt_policy.policies.chunk_constraints import NormalizedConstraints
from ebt_policy.real_robot.limits import Bounds
from ebt_policy.real_robot.safety import Motion, limit_chunks

MAX_NOISE = 1 << 20  # numbers that a prediction may need
FREE = 1e6  # as a limit, in env units: no limit
TICK_S = 0.1  # of examples
ENDS = ("max", "min")
LIMITS = ("low", "high", "velocity", "acceleration")


@dataclass(frozen=True)
class Port:
    """An input or output of a program.

    Attributes:
        name: its name.
        shape: its shape.
        dtype: its type, as in NumPy.
        meaning: description of its values.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    meaning: str


class PolicyProgram:
    """The function ``(state, images..., noise, prefix, prefix_length, limits, motion, tick_s)``.

    It returns the actions of the chunk and, for an energy policy, the energy. `inputs` and
    `outputs` describe them. The batch has one row.

    Args:
        policy: the policy, with its inference options.

    Raises:
        ConfigError: the number of steps of the policy depends on the data, or it draws noise that
            is no input.
    """

    def __init__(self, policy: Policy) -> None:
        _check_fixed(policy)
        self._policy, self.shape = policy, policy.shape
        self.num_noise = MAX_NOISE  # until it is known
        state, *images, noise, prefix, length, limits, motion, tick_s = self.example()
        numbers = PredrawnNoise(noise)
        try:
            with torch.no_grad():
                chunk = self._predict(
                    state, images, numbers, prefix, length, limits, motion, tick_s
                )
        except ValueError as error:
            raise ConfigError(f"the policy cannot be exported: {error}") from error
        self.num_noise, self.has_energy = numbers.used, chunk.energy is not None

    def _cameras(self) -> list[Port]:
        steps = self.shape.n_obs_steps
        return [
            Port(name, (1, steps, *size, 3), "uint8", "frames, newest last")
            for name, size in (self.shape.cameras or {}).items()
        ]

    @property
    def inputs(self) -> list[Port]:
        """The inputs in their order."""
        shape, action_dim = self.shape, self.shape.action_dim
        return [
            Port("state", (1, shape.n_obs_steps, shape.obs_dim), "float32",
                 "observations in env units, newest last"),
            *self._cameras(),
            Port("noise", (self.num_noise,), "float32", "standard normal numbers"),
            Port("prefix", (1, shape.horizon, action_dim), "float32",
                 "committed actions in env units; later entries are arbitrary finite numbers"),
            Port("prefix_length", (), "int64", "number of committed actions, 0 for none"),
            Port("limits", (len(LIMITS), action_dim), "float64",
                 f"{', '.join(LIMITS)} of each action entry; {FREE:g} and -{FREE:g} for none"),
            Port("motion", (2, action_dim), "float64",
                 "last command, and its difference from the one before"),
            Port("tick_s", (), "float64", "time from tick to tick, s"),
        ]  # fmt: skip

    @property
    def outputs(self) -> list[Port]:
        """The outputs in their order."""
        actions = Port(
            "actions", (1, self.shape.horizon, self.shape.action_dim), "float32",
            f"chunk in env units; execute from index {self.shape.n_obs_steps - 1} on",
        )  # fmt: skip
        energy = Port("energy", (1,), "float32", "energy of the chunk, lower is better")
        return [actions, energy] if self.has_energy else [actions]

    def __call__(self, state: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Predict a chunk."""
        *images, noise, prefix, length, limits, motion, tick_s = others
        chunk = self._predict(
            state, images, PredrawnNoise(noise), prefix, length, limits, motion, tick_s
        )
        return (chunk.actions,) if chunk.energy is None else (chunk.actions, chunk.energy)

    def _predict(
        self,
        state: Tensor,
        images: list[Tensor],
        noise: PredrawnNoise,
        prefix: Tensor,
        length: Tensor,
        limits: Tensor,
        motion: Tensor,
        tick_s: Tensor,
    ) -> Chunk:
        policy, shape = self._policy, self.shape
        is_committed = torch.arange(shape.horizon, device=state.device).unsqueeze(1) < length
        committed = policy.normalize_actions(state, prefix)
        first = length.clamp(min=shape.n_obs_steps - 1)

        def project(x: Tensor) -> Tensor:
            chunks = policy.unnormalize_actions(state, x).double()
            limited = limit_chunks(Bounds(*limits), chunks, Motion(*motion), tick_s, first)
            return policy.normalize_actions(state, limited.to(state))

        obs = {"obs": state, **dict(zip(shape.cameras or {}, images, strict=True))}
        features = policy.encode_observation(obs, committed, length.view(1))
        constraints = NormalizedConstraints(
            prefix=committed, prefix_mask=is_committed, project=project
        )
        chunk = policy._predict_normalized(features, constraints, noise)
        actions = policy.unnormalize_actions(state, chunk.actions)
        chunk.actions = torch.where(is_committed, prefix, actions)
        return chunk

    @property
    def action_range(self) -> Tensor:
        """The range (A,) of each entry of the training actions, in env units."""
        limits = self._policy.normalizer.to_json()["action"]
        high, low = (torch.tensor(limits[name], device=self._policy.device) for name in ENDS)
        return (high - low).clamp(min=1e-9)

    def example(self, seed: int = 0, *, constrained: bool = False) -> tuple[Tensor, ...]:
        """Return valid inputs: an observation as in the training data, and random images.

        Args:
            seed: seed of the observation, the images and the noise.
            constrained: whether there are committed actions, and limits that allow a hundredth of
                the range of the actions in a tick.
        """
        generator = torch.Generator().manual_seed(seed)
        policy, shape, device = self._policy, self.shape, self._policy.device
        unit = torch.rand(1, shape.n_obs_steps, shape.obs_dim, generator=generator) - 0.5
        state = policy.normalizer.unnormalize("obs", unit.to(device))
        images = [
            torch.randint(256, port.shape, generator=generator, dtype=torch.uint8).to(device)
            for port in self._cameras()
        ]
        action = policy.unnormalize_actions(
            state, torch.zeros(1, shape.horizon, shape.action_dim, device=device)
        )
        free = torch.full((shape.action_dim,), FREE, dtype=torch.float64, device=device)
        speed = self.action_range.double() / (100 * TICK_S) if constrained else free
        length = min(shape.n_obs_steps + 1, shape.horizon - 1) if constrained else 0
        return (
            state, *images,
            torch.randn(self.num_noise, generator=generator).to(device),
            action, torch.tensor(length, device=device),
            torch.stack([-free, free, speed, 10 * speed]),
            torch.stack([action[0, 0], torch.zeros_like(action[0, 0])]).double(),
            torch.tensor(TICK_S, dtype=torch.float64, device=device),
        )  # fmt: skip

    def export(self) -> torch.export.ExportedProgram:
        """Record all operations, gradients included, as one graph without autograd."""
        example = self.example()
        decompositions: Any = torch.export.default_decompositions()
        # The fused kernels of attention have no equivalent in other runtimes.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), export_tracing():
            traced = make_fx(self, decomposition_table=decompositions)(*example)
            traced.graph.eliminate_dead_code()
            traced.recompile()
            return torch.export.export(traced, example)


def _check_fixed(policy: Policy) -> None:
    inference: Any = getattr(policy, "inference", None)
    for option in ("stop_grad_norm", "straightness_tol", "metropolis_steps"):
        if getattr(inference, option, None):
            raise ConfigError(
                f"an exported policy has a fixed number of steps; add @{option}="
                f"{0 if option == 'metropolis_steps' else 'null'} to the checkpoint."
            )
    if getattr(inference, "scheduler", "ddim") != "ddim":
        raise ConfigError(
            "the scheduler ddpm draws its own noise; add @scheduler=ddim,steps=10 to the "
            "checkpoint."
        )
