"""Interface of all policies, with or without an energy.

Shapes: B batch, T `horizon`, To `n_obs_steps`, Ta `n_action_steps`, Do observation and A action
dimension, P committed actions, H x W pixels of a camera. Inside a policy, all values are in network
units, which are normalised (see `Policy.normalize`). `predict_chunk` takes and returns env units,
the units of the environment.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebt_policy.data.normalizer import Normalizer
from ebt_policy.data.relative_actions import action_origin, origin_index
from ebt_policy.energy.sampling import Generators
from ebt_policy.models.base import Domain, Model, wrap_read_errors
from ebt_policy.policies.acting import ChunkedActor
from ebt_policy.policies.chunk import Chunk
from ebt_policy.policies.chunk_constraints import (
    ChunkConstraints,
    NormalizedConstraints,
    normalize_constraints,
    pad_to_horizon,
)
from ebt_policy.policies.policy_shape import PolicyShape
from ebt_policy.policies.prefix import encode_prefix, sample_prefix
from ebt_policy.policies.registry import POLICIES, build_policy
from ebt_policy.policies.validation import validate_actions, validate_observation
from ebt_policy.policies.vision import VisionEncoder


class Policy(Model):
    """Base of all policies.

    Args:
        shape: dimensions of observations, actions and chunks.
        normalizer: normalizer with the keys "obs" and "action", fitted on the training data (see
            `fit_normalizer`).
        vision: encoder of the cameras in ``shape``; None if there are none.

    Attributes:
        network_shape: ``shape`` with ``obs_dim`` replaced by the input size of the network: "obs",
            the features of all cameras, and the committed actions.
        supports_costs: whether it has candidates that costs can move and select.
        is_available: True, see `ChunkPredictor`.
    """

    domain = Domain.POLICY
    files = ("normalizer.json",)
    supports_costs: bool = False
    is_available: bool = True

    def __init__(
        self, shape: PolicyShape, normalizer: Normalizer, vision: VisionEncoder | None = None
    ) -> None:
        super().__init__()
        self.shape = shape
        self.normalizer = normalizer
        self._actor: ChunkedActor | None = None
        self._teacher: Callable[[dict[str, Any]], dict[str, Any]] | None = None
        self.vision = vision
        num_features = 0 if vision is None else vision.num_features
        num_prefix = shape.max_prefix_len * (shape.action_dim + 1)
        # A buffer, because a list would be copied to the device in every prediction.
        self._origin_index: Tensor | None
        self.register_buffer("_origin_index", origin_index(shape.relative_to), persistent=False)
        self.network_shape = replace(shape, obs_dim=shape.obs_dim + num_features + num_prefix)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of a batch of windows: "obs", "action" and the names of the cameras."""
        return ("obs", "action", *(self.shape.cameras or {}))

    # -- training ---------------------------------------------------------------------------

    def with_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with "noise", all randomness of a training step.

        The randomness consists of changes of the images, crops, committed prefixes and the noise of
        the loss. Images are changed in training mode only.

        Args:
            batch: normalised "obs" (B, To, Do) and "action" (B, T, A), and camera images
                (B, To, H, W, 3) uint8.
        """
        noisy_batch = super().with_noise(batch)
        noise = noisy_batch["noise"]
        if self.vision is not None:
            noise["crop"] = self.vision.sample_crop(batch["obs"])
            if self.training and self.vision.augment is not None:
                noisy_batch |= {k: self.vision.augment(batch[k]) for k in self.shape.cameras or ()}
        if self.shape.max_prefix_len:
            noise |= sample_prefix(batch["action"], self.shape.max_prefix_len)
        noisy_batch = {**noisy_batch, "noise": noise}
        return noisy_batch if self._teacher is None else self._teacher(noisy_batch)

    def set_teacher(self, teacher: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Train on the batches that ``teacher`` makes of batches with noise."""
        self._teacher = teacher

    def normalize(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert windows with "obs" (B, To, Do) and "action" (B, T, A) to network units.

        Images are not changed and stay uint8.
        """
        return {
            **batch,
            "obs": self.normalizer.normalize("obs", batch["obs"]),
            "action": self.normalize_actions(batch["obs"], batch["action"]),
        }

    def observation_features(
        self,
        batch: dict[str, Any],
        prefix: Tensor | None = None,
        prefix_length: Tensor | None = None,
    ) -> Tensor:
        """Return the network's input features of a normalised batch.

        Crops and committed actions are taken from ``batch["noise"]``. Without noise, crops are
        centred and the committed actions are the first ``prefix_length`` (B,) of ``prefix``
        (B, P, A), by default all.

        Returns:
            (B, To, `network_shape`.obs_dim).
        """
        noise, features = batch.get("noise", {}), [batch["obs"]]
        if self.vision is not None:
            features.append(self.vision(batch, noise.get("crop")))
        if longest := self.shape.max_prefix_len:
            actions, length = prefix, prefix_length
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
        """Predict a chunk, in network units, from the features ``obs`` (B, To, *).

        Implementations must apply `constrain` to the actions.

        Args:
            obs: output of `observation_features`.
            constraints: see `NormalizedConstraints`.
            generator: as in `predict_chunk`.
        """

    def constrain(self, chunks: Tensor, constraints: NormalizedConstraints) -> Tensor:
        """Return chunks (B, ..., T, A), in network units, moved within all limits.

        The chunks are clamped to the range of the demonstrated actions, because the policy was not
        trained outside of it. Then the constraints are applied.
        """
        return constraints.apply(self.normalizer.clamp("action", chunks))

    def encode_observation(
        self,
        obs: dict[str, Tensor],
        prefix: Tensor | None = None,
        prefix_length: Tensor | None = None,
    ) -> Tensor:
        """Return `observation_features` of an observation in env units.

        Args:
            obs: as in `predict_on_device`.
            prefix: (B, P, A), committed actions in network units.
            prefix_length: (B,), number of actions of ``prefix`` that are committed; None for all.
        """
        normalized = {**obs, "obs": self.normalizer.normalize("obs", obs["obs"])}
        return self.observation_features(normalized, prefix, prefix_length)

    def normalize_actions(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Convert actions (B, ..., A) from env units to network units.

        Args:
            obs: (B, To, Do) in env units; relative actions are measured from the newest step.
        """
        return self.normalizer.normalize("action", actions - self._origin(obs, actions))

    def unnormalize_actions(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Convert actions (B, ..., A) from network units to env units (see `normalize_actions`)."""
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
            obs: "obs" (B, To, Do) in env units, newest last, and the images (B, To, H, W, 3) uint8
                of each camera under its name.
            constraints: committed actions, limits, an earlier plan, costs and a deadline.
            generator: generator of the noise, or a list with one generator for each row.

        Raises:
            ValueError: a shape is wrong, a camera is missing, or the observation, the prefix or the
                earlier plan contains NaN or infinity.
            ConfigError: the policy does not support costs, or its selection rule no budget.
            CostError: a cost failed, or did not return finite numbers of at least 0.
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

    def reset(self, seed: int | None = None) -> None:
        """Clear the stored observations and actions of `act`; call it before each episode.

        Args:
            seed: seed of the noise in this episode; None for torch's global generator.
        """
        self._actor = ChunkedActor(self, seed)

    def act(self, observation: Any) -> np.ndarray:
        """Return the next action, for your own control loop.

        A chunk is predicted after every Ta actions. Call `reset` before each episode.

        Args:
            observation: newest observation in env units: an array (Do,), or a mapping with this
                array under "obs" and an image (H, W, 3) uint8 under the name of each camera. For N
                environments, each array has N as its first dimension.

        Returns:
            The action in env units, (A,), or (N, A) for N environments.

        Raises:
            ValueError: the observation does not fit the policy, or N changed without `reset`.
        """
        if self._actor is None:
            self.reset()
        assert self._actor is not None
        return self._actor.act(observation)

    def predict_on_device(
        self,
        obs: dict[str, Tensor],
        *,
        constraints: ChunkConstraints | None = None,
        generator: Generators = None,
    ) -> Chunk:
        """Predict like `predict_chunk`, from validated tensors on the policy's device.

        The host does not wait for the device, except for ``project``, ``deadline_s``, a CPU
        generator or an option that stops a descent early.
        """
        constraints = constraints or ChunkConstraints()
        with torch.inference_mode(False), torch.no_grad():
            state, prefix = obs["obs"], constraints.prefix
            if prefix is not None and not prefix.shape[1]:
                prefix = None
            committed = None if prefix is None else self.normalize_actions(state, prefix)
            normalized = normalize_constraints(self, obs, constraints, committed)
            features = self.encode_observation(obs, committed)
            chunk = self._predict_normalized(features, normalized, generator)
            actions = self.unnormalize_actions(state, chunk.actions)
            # Return the prefix exactly, without the rounding error of converting units twice.
            exact = None if prefix is None else pad_to_horizon(prefix, self.shape.horizon)
            chunk.actions = normalized.hold_prefix(actions, exact)
            return chunk

    def compile_prediction(self) -> None:
        """Compile the prediction for a control loop: the same chunks at a lower latency.

        The first prediction at each batch size then takes about a minute.
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
    def build(cls, config: dict[str, Any], normalizer: Normalizer) -> Policy:
        """Return an untrained policy from the configuration in a checkpoint."""
        return build_policy(config, normalizer)

    @classmethod
    def _from_config(cls, config: dict[str, Any], folder: Path) -> Model:
        with wrap_read_errors(folder / "normalizer.json"):
            normalizer = Normalizer.from_json(json.loads((folder / "normalizer.json").read_text()))
            # The weights of a policy may be those of several policies (see `Product`).
            policy_class = POLICIES.get(config["model"]["name"], config.get("needs"))
        policy = policy_class.build(config, normalizer)
        with wrap_read_errors(folder / "normalizer.json"):  # checks that it fits the shape
            normalizer.normalize("obs", torch.zeros(policy.shape.obs_dim))
            normalizer.normalize("action", torch.zeros(policy.shape.action_dim))
        return policy
