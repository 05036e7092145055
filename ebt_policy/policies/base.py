"""The interface of every policy, with or without an energy.

Shapes: B batch, T `horizon`, To `n_obs_steps`, Ta `n_action_steps`, Do observation and A action
dimension, P committed actions, H x W pixels of a camera. Inside a policy all numbers are in the
units of its network (see `Policy.normalize`); `predict_chunk` takes and returns env units.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ebt_policy.data.normalizer import Normalizer
from ebt_policy.data.relative_actions import action_origin, origin_index
from ebt_policy.energy.sampling import Generators
from ebt_policy.models.base import Domain, Model, wrap_read_errors
from ebt_policy.policies.chunk_constraints import (
    ChunkConstraints,
    NormalizedConstraints,
    Projection,
)
from ebt_policy.policies.policy_shape import PolicyShape
from ebt_policy.policies.prefix import encode_prefix, sample_prefix
from ebt_policy.policies.registry import build_policy
from ebt_policy.policies.validation import validate_actions, validate_observation
from ebt_policy.policies.vision import VisionEncoder


@dataclass
class Chunk:
    """A predicted chunk of actions.

    Attributes:
        actions: (B, T, A) in env units. The first to execute is index To - 1, the one after the
            newest observation.
        steps_used: (B,) refinement passes.
        energy: (B,) final energy, lower is better; None without an energy.
        grad_norm: (B,) gradient norm at the last step; None without an energy.
    """

    actions: Tensor
    steps_used: Tensor
    energy: Tensor | None = None
    grad_norm: Tensor | None = None


class Policy(Model):
    """Base of all policies.

    Args:
        shape: dimensions.
        normalizer: fitted on the training data, keys "obs" and "action" (see `fit_normalizer`).
        vision: encoder of the cameras of ``shape``, if it has any.

    Attributes:
        network_shape: ``shape`` with the observation dimension that the network reads: "obs", the
            features of all cameras, and the committed actions.
    """

    domain = Domain.POLICY
    files = ("normalizer.json",)

    def __init__(
        self, shape: PolicyShape, normalizer: Normalizer, vision: VisionEncoder | None = None
    ) -> None:
        super().__init__()
        self.shape = shape
        self.normalizer = normalizer
        self.vision = vision
        num_features = 0 if vision is None else vision.num_features
        num_prefix = shape.max_prefix_len * (shape.action_dim + 1)
        # A buffer, as a list would be copied to the device in every prediction.
        self._origin_index: Tensor | None
        self.register_buffer("_origin_index", origin_index(shape.relative_to), persistent=False)
        self.network_shape = replace(shape, obs_dim=shape.obs_dim + num_features + num_prefix)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of a batch of windows: "obs", "action" and the names of the cameras."""
        return ("obs", "action", *(self.shape.cameras or {}))

    # -- training ---------------------------------------------------------------------------

    def with_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add ``batch["noise"]``, all the randomness of a training step: crops, prefixes, noise.

        Args:
            batch: normalised "obs" (B, To, Do) and "action" (B, T, A), and the cameras' images
                (B, To, H, W, 3) uint8.
        """
        noisy_batch = super().with_noise(batch)
        noise = noisy_batch["noise"]
        if self.vision is not None:
            noise["crop"] = self.vision.sample_crop(batch["obs"])
        if self.shape.max_prefix_len:
            noise |= sample_prefix(batch["action"], self.shape.max_prefix_len)
        return {**noisy_batch, "noise": noise}

    def normalize(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return windows, "obs" (B, To, Do) and "action" (B, T, A), in the network's units.

        Images stay as they are, uint8.
        """
        return {
            **batch,
            "obs": self.normalizer.normalize("obs", batch["obs"]),
            "action": self.normalize_actions(batch["obs"], batch["action"]),
        }

    def observation_features(self, batch: dict[str, Any], prefix: Tensor | None = None) -> Tensor:
        """Return what the network reads of a normalised batch, (B, To, `network_shape`.obs_dim).

        Crops and committed actions are those of ``batch["noise"]``. Without noise, crops are at
        the centre and the committed actions are ``prefix`` (B, P, A).
        """
        noise, features = batch.get("noise", {}), [batch["obs"]]
        if self.vision is not None:
            features.append(self.vision(batch, noise.get("crop")))
        if longest := self.shape.max_prefix_len:
            actions, length = prefix, None
            if "prefix_length" in noise:
                actions = batch["action"][:, :longest] + noise["prefix_noise"]
                length = noise["prefix_length"]
            features.append(encode_prefix(batch["obs"], self.shape, actions, length))
        return torch.cat(features, dim=-1)

    # -- inference --------------------------------------------------------------------------

    @abstractmethod
    def _predict_normalized(
        self, obs: Tensor, constraints: NormalizedConstraints, generator: Generators
    ) -> Chunk:
        """Predict in the network's units, from obs (B, To, *) of `observation_features`.

        The actions must have passed `constrain`.
        """

    def constrain(self, chunks: Tensor, constraints: NormalizedConstraints) -> Tensor:
        """Return chunks (B, ..., T, A), network units, within all limits.

        These are the constraints, and the limits of the demonstrations: beyond them nothing was
        learned.
        """
        return constraints.apply(self.normalizer.clamp("action", chunks))

    def encode_observation(self, obs: dict[str, Tensor], prefix: Tensor | None = None) -> Tensor:
        """Return `observation_features` of an observation in env units.

        Args:
            prefix: (B, P, A), committed actions in the network's units.
        """
        normalized = {**obs, "obs": self.normalizer.normalize("obs", obs["obs"])}
        return self.observation_features(normalized, prefix)

    def normalize_actions(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Return actions (B, ..., A), env units, in the network's units.

        Args:
            obs: (B, To, Do), env units, which relative actions are measured from.
        """
        return self.normalizer.normalize("action", actions - self._origin(obs, actions))

    def unnormalize_actions(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Return actions (B, ..., A), network units, in env units (see `normalize_actions`)."""
        relative = self.normalizer.unnormalize("action", actions)
        return relative + self._origin(obs, relative)

    def _origin(self, obs: Tensor, actions: Tensor) -> Tensor | float:
        origin = action_origin(obs, self._origin_index)
        if not isinstance(origin, Tensor):
            return origin
        return origin.view(len(obs), *(1 for _ in actions.shape[2:]), -1).to(actions)

    def predict_chunk(
        self,
        obs: dict[str, Tensor],
        *,
        constraints: ChunkConstraints | None = None,
        generator: Generators = None,
    ) -> Chunk:
        """Predict a chunk of actions.

        Args:
            obs: "obs" (B, To, Do), env units, the newest last, and under the name of each camera
                (B, To, H, W, 3) uint8.
            constraints: committed actions, limits, an earlier plan, a deadline.
            generator: of the noise; a list has one for each row.

        Raises:
            ValueError: wrong shapes, a missing camera, NaN or infinity in the observation, the
                prefix or the earlier plan.
        """
        constraints, horizon = constraints or ChunkConstraints(), self.shape.horizon
        with torch.inference_mode(False), torch.no_grad():
            obs = validate_observation(obs, self.shape, self.device)
            common: dict[str, Any] = {"batch": len(obs["obs"]), "device": self.device}
            prefix = validate_actions(
                constraints.prefix, "prefix", self.shape, lengths=range(horizon + 1), **common
            )
            warm_start = validate_actions(
                constraints.warm_start, "earlier plan", self.shape,
                lengths=range(horizon, horizon + 1), **common,
            )  # fmt: skip
            constraints = replace(constraints, prefix=prefix, warm_start=warm_start)
            return self.predict_on_device(obs, constraints=constraints, generator=generator)

    def predict_on_device(
        self,
        obs: dict[str, Tensor],
        *,
        constraints: ChunkConstraints | None = None,
        generator: Generators = None,
    ) -> Chunk:
        """Predict as `predict_chunk`, from valid float32 tensors on the policy's device.

        The host never waits for the device here, unless ``project``, ``deadline_s``, a generator
        of the host or an option that stops a descent early makes it.
        """
        constraints = constraints or ChunkConstraints()
        with torch.inference_mode(False), torch.no_grad():
            state, prefix = obs["obs"], constraints.prefix
            if prefix is not None and not prefix.shape[1]:
                prefix = None
            committed = None if prefix is None else self.normalize_actions(state, prefix)
            normalized = self._normalize_constraints(state, constraints, committed)
            features = self.encode_observation(obs, committed)
            chunk = self._predict_normalized(features, normalized, generator)
            actions = self.unnormalize_actions(state, chunk.actions)
            # The prefix is returned exactly, without the rounding of two changes of units.
            exact = None if prefix is None else self._pad_to_horizon(prefix)
            chunk.actions = normalized.hold_prefix(actions, exact)
            return chunk

    def _normalize_constraints(
        self, obs: Tensor, constraints: ChunkConstraints, prefix: Tensor | None
    ) -> NormalizedConstraints:
        """Return constraints in the network's units.

        Args:
            obs: (B, To, Do), env units.
            prefix: (B, P, A), committed actions in the network's units, None if there are none.
        """
        warm_start, project = constraints.warm_start, constraints.project
        normalized = NormalizedConstraints(
            warm_start=None if warm_start is None else self.normalize_actions(obs, warm_start),
            project=None if project is None else self._project_normalized(obs, project),
            deadline_s=constraints.deadline_s,
        )
        if prefix is None:
            return normalized
        steps = torch.arange(self.shape.horizon, device=obs.device).unsqueeze(1)
        return replace(
            normalized,
            prefix=self._pad_to_horizon(prefix),
            prefix_mask=steps < prefix.shape[1],
        )

    def _project_normalized(self, obs: Tensor, project: Projection) -> Projection:
        """Return a projection of chunks in the network's units."""
        return lambda x: self.normalize_actions(obs, project(self.unnormalize_actions(obs, x)))

    def _pad_to_horizon(self, actions: Tensor) -> Tensor:
        """Append zeros to actions (B, P, A): (B, T, A)."""
        return F.pad(actions, (0, 0, 0, self.shape.horizon - actions.shape[1]))

    def compile_prediction(self) -> None:
        """Compile what `predict_chunk` computes, for a control loop: same chunks, lower latency.

        The first chunk of each batch size then takes about a minute.
        """
        if self.vision is not None:
            self.vision.compile()
        net: Any = self.get_submodule("net")
        net.compile()
        net.encode = torch.compile(net.encode)

    # -- storage ----------------------------------------------------------------------------

    @property
    def _data_config(self) -> dict[str, Any]:
        return {"shape": asdict(self.shape)}

    def _write(self, folder: Path) -> None:
        (folder / "normalizer.json").write_text(json.dumps(self.normalizer.to_json()))

    @classmethod
    def _from_config(cls, config: dict[str, Any], folder: Path) -> Model:
        with wrap_read_errors(folder / "normalizer.json"):
            normalizer = Normalizer.from_json(json.loads((folder / "normalizer.json").read_text()))
        policy = build_policy(config, normalizer)
        with wrap_read_errors(folder / "normalizer.json"):  # it must fit the shape
            normalizer.normalize("obs", torch.zeros(policy.shape.obs_dim))
            normalizer.normalize("action", torch.zeros(policy.shape.action_dim))
        return policy


def load_policy(path: str | Path, device: torch.device | str = "cpu") -> Policy:
    """Load any policy from a checkpoint or run folder (see `Policy.from_checkpoint`)."""
    return Policy.from_checkpoint(path, device)
