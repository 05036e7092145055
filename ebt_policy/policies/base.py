"""What every policy is, with or without an energy.

Shapes: B batch, T `horizon`, To `n_obs_steps`, Ta `n_action_steps`, Do observation and A action
dimension, H x W pixels of a camera. Within a policy everything is in the units of its network (see
`Policy.normalize`); `predict_chunk` speaks env units.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ebt_policy.config import options
from ebt_policy.data.normalizer import Normalizer
from ebt_policy.data.windows import action_origin, origin_index
from ebt_policy.energy.sampling import Generators
from ebt_policy.errors import ConfigError
from ebt_policy.models.base import Domain, Model, reading
from ebt_policy.models.building import build_model, build_size
from ebt_policy.policies.vision import VisionConfig, VisionEncoder
from ebt_policy.registry import Registry

# Of actions that a policy is told of in training, in units of their spread. Told exactly how a
# demonstration went on, it goes on likewise and watches less (docs/experiments.md).
TOLD_NOISE = 0.1


@dataclass(frozen=True)
class PolicyShape:
    """What ties a policy to its task (names as in Diffusion Policy).

    Args:
        obs_dim, action_dim, horizon, n_obs_steps, n_action_steps: Do, A, T, To, Ta.
        relative_to: A entries of the newest observation from which a chunk's actions are measured
            (where the robot is, for actions that are places to go to), None for numbers that are
            no places; None as a whole for absolute actions.
        cameras: name -> [H, W] of each camera that the policy sees.
        max_prefix: so many committed actions the network is told of, at most; 0 for none.
    """

    obs_dim: int
    action_dim: int
    horizon: int
    n_obs_steps: int
    n_action_steps: int
    relative_to: list[int | None] | None = None
    cameras: dict[str, list[int]] | None = None
    max_prefix: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.max_prefix < self.horizon:
            raise ConfigError(
                f"max_prefix={self.max_prefix} must be less than the horizon {self.horizon}."
            )


@dataclass
class Chunk:
    """A predicted chunk of actions.

    Attributes:
        actions: (B, T, A) in env units. The first to execute is index To - 1, the one after the
            newest observation.
        steps_used: (B,) passes of refinement that were spent.
        energy: (B,) final energy, lower is better; None without an energy.
        grad_norm: (B,) gradient norm at the last step; None without an energy.
    """

    actions: Tensor
    steps_used: Tensor
    energy: Tensor | None = None
    grad_norm: Tensor | None = None


@dataclass(frozen=True)
class ChunkConstraints:
    """What a chunk is to be made on, in the network's units; see `Policy.predict_chunk`.

    All tensors have the same shape whatever the length of the prefix, so that a compiled prediction
    serves every length.

    Attributes:
        prefix: (B, T, A) its first actions, committed already; beyond them anything.
        committed: (T, 1) bool, True for the actions of ``prefix``; given exactly with it.
        warm: (B, T, A) an earlier plan to start from.
        project: chunks (B, ..., T, A) -> the nearest that may be executed.
        deadline_s: wall-clock budget.
    """

    prefix: Tensor | None = None
    committed: Tensor | None = None
    warm: Tensor | None = None
    project: Callable[[Tensor], Tensor] | None = None
    deadline_s: float | None = None

    def fit(self, chunks: Tensor) -> Tensor:
        """Finished chunks (B, ..., T, A) on these terms."""
        if self.project is not None:
            chunks = self.project(chunks)
        return self.hold(chunks, self.prefix)

    def hold(self, chunks: Tensor, prefix: Tensor | None) -> Tensor:
        """Chunks (B, ..., T, A) that begin with a prefix (B, ..., T, A), where one is committed."""
        if prefix is None or self.committed is None:
            return chunks
        between = (1,) * (chunks.ndim - prefix.ndim)
        return torch.where(
            self.committed, prefix.view(len(chunks), *between, *prefix.shape[1:]), chunks
        )


class Policy(Model):
    """Base of all policies.

    Args:
        shape: dimensions.
        normalizer: fitted on the training data, keys "obs" and "action" (see `fit_normalizer`).
        vision: encoder of the cameras of ``shape``, if it has any.

    Attributes:
        tokens: the shape with what the network reads a time step as its observation: "obs", the
            features of all cameras, and the actions that are committed.
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
        seen = 0 if vision is None else vision.features
        told = shape.max_prefix * (shape.action_dim + 1)
        self._origin_index: (
            Tensor | None
        )  # on the device beforehand: a list would be sent each time
        self.register_buffer("_origin_index", origin_index(shape.relative_to), persistent=False)
        self.tokens = replace(shape, obs_dim=shape.obs_dim + seen + told)

    @property
    def keys(self) -> tuple[str, ...]:
        """What a batch of windows holds: "obs", "action" and the names of the cameras."""
        return ("obs", "action", *(self.shape.cameras or {}))

    # -- training ---------------------------------------------------------------------------

    def draw(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add ``batch["draws"]``, all the randomness of a training step: crops, prefixes, noise.

        Args:
            batch: normalised "obs" (B, To, Do) and "action" (B, T, A), and the cameras' images
                (B, To, H, W, 3) uint8.
        """
        drawn = super().draw(batch)
        draws = drawn["draws"]
        if self.vision is not None:
            draws["crop"] = self.vision.draw(batch["obs"])
        if longest := self.shape.max_prefix:  # half of the time a robot has just begun to move
            action = batch["action"]
            count = torch.randint(-longest, longest + 1, (len(action),), device=action.device)
            blur = TOLD_NOISE * torch.randn_like(action[:, :longest])
            draws |= {"committed": count.clamp(min=0), "blur": blur}
        return {**drawn, "draws": draws}

    def normalize(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of windows, "obs" (B, To, Do) and "action" (B, T, A), in the network's units.

        Images stay as they are, uint8.
        """
        return {
            **batch,
            "obs": self.normalizer.normalize("obs", batch["obs"]),
            "action": self._network_actions(batch["obs"], batch["action"]),
        }

    def features(self, batch: dict[str, Any], prefix: Tensor | None = None) -> Tensor:
        """What the network reads of a normalised batch: (B, To, `tokens`' observation).

        Images are cropped, and actions committed, where ``batch["draws"]`` says; without draws at
        the centre, and those of ``prefix`` (B, P, A).
        """
        draws, parts = batch.get("draws", {}), [batch["obs"]]
        if self.vision is not None:
            parts.append(self.vision(batch, draws.get("crop")))
        if self.shape.max_prefix:
            actions, count = prefix, None
            if "committed" in draws:
                actions = batch["action"][:, : self.shape.max_prefix] + draws["blur"]
                count = draws["committed"]
            parts.append(self._told(batch["obs"], actions, count))
        return torch.cat(parts, dim=-1)

    def _told(self, obs: Tensor, actions: Tensor | None, count: Tensor | None) -> Tensor:
        """The first ``count`` (B,) of some actions (B, n, A), all without a count, as every step of
        obs is told of them: (B, To, max_prefix * (A + 1)), the last of each saying whether it is.

        A network that was not told in training hardly makes its chunks fit what is committed,
        however they are descended (docs/experiments.md).
        """
        s = self.shape
        told = obs.new_zeros(len(obs), s.max_prefix, s.action_dim + 1)
        if actions is not None:
            actions = actions[:, : s.max_prefix]
            known = torch.cat([actions, torch.ones_like(actions[..., :1])], dim=-1)
            if count is not None:
                held = torch.arange(known.shape[1], device=obs.device) < count.unsqueeze(1)
                known = known * held.unsqueeze(-1)
            told = torch.cat([known, told[:, known.shape[1] :]], dim=1)
        return told.flatten(1).unsqueeze(1).expand(-1, s.n_obs_steps, -1)

    # -- inference --------------------------------------------------------------------------

    @abstractmethod
    def refine(self, obs: Tensor, terms: ChunkConstraints, generator: Generators) -> Chunk:
        """Predict in the network's units, from obs (B, To, *) as `features` gives it.

        The actions are what `admit` makes of a prediction.
        """

    def admit(self, chunks: Tensor, terms: ChunkConstraints) -> Tensor:
        """Chunks (B, ..., T, A), network units, within the demonstrations' limits and on the terms.

        Beyond the limits of the demonstrations nothing was learned.
        """
        return terms.fit(self.normalizer.clamp("action", chunks))

    def observe(self, obs: dict[str, Tensor], prefix: Tensor | None = None) -> Tensor:
        """`features` of an observation in env units, and a prefix in the network's."""
        return self.features({**obs, "obs": self.normalizer.normalize("obs", obs["obs"])}, prefix)

    def _network_actions(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Actions (B, ..., A), env units, in the network's units, given obs (B, To, Do)."""
        return self.normalizer.normalize("action", actions - self._origin(obs, actions))

    def env_actions(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Inverse: actions (B, ..., A) in the network's units, given obs (B, To, Do), env units."""
        moved = self.normalizer.unnormalize("action", actions)
        return moved + self._origin(obs, moved)

    def _origin(self, obs: Tensor, actions: Tensor) -> Tensor | float:
        origin = action_origin(obs, self._origin_index)
        if not isinstance(origin, Tensor):
            return origin
        return origin.view(len(obs), *(1 for _ in actions.shape[2:]), -1).to(actions)

    def predict_chunk(
        self,
        obs: dict[str, Tensor],
        *,
        prefix: Tensor | None = None,
        warm: Tensor | None = None,
        project: Callable[[Tensor], Tensor] | None = None,
        deadline_s: float | None = None,
        generator: Generators = None,
    ) -> Chunk:
        """Predict a chunk of actions.

        Args:
            obs: "obs" (B, To, Do), env units, the newest last, and under the name of each camera
                (B, To, H, W, 3) uint8.
            prefix: (B, P, A), env units: the first P actions of the chunk, already committed (the
                first To - 1 of a chunk lie in the past). The rest is made to fit them, as well as
                the policy can: best where it was trained to, with ``task.max_prefix``.
            warm: (B, T, A), env units: an earlier plan for the same time, from which an
                `EnergyPolicy` starts (see `EnergyInference`); the others ignore it.
            project: chunks (B, ..., T, A), env units, to the nearest that may be executed (a
                robot's limits). An `EnergyPolicy` descends within them, so that what it chooses
                by energy is what is executed; the others are cut to them in the end.
            deadline_s: wall-clock budget for the refinement; a policy that is not `EnergyPolicy`
                makes a fixed number of passes and ignores it.
            generator: of the noise; a list has one for each row.

        Raises:
            ValueError: for wrong shapes, a missing camera, NaN or Inf in the observation, the
                prefix or the earlier plan.
        """
        s, device = self.shape, self.device
        with torch.inference_mode(False), torch.no_grad():
            # Checked where the tensors are: to ask a GPU for an answer would make the host wait.
            if "obs" not in obs:
                raise ValueError(f'the observation must have the key "obs", got {sorted(obs)}.')
            state = obs["obs"]
            if state.ndim != 3 or tuple(state.shape[1:]) != (s.n_obs_steps, s.obs_dim):
                raise ValueError(
                    f"the observation must be (B, {s.n_obs_steps}, {s.obs_dim}), "
                    f"got {tuple(state.shape)}."
                )
            if not bool(state.isfinite().all()):
                raise ValueError("the observation holds NaN or Inf; check the sensor.")
            moved = {
                name: _image(obs, name, (len(state), s.n_obs_steps, *size, 3)).to(
                    device, non_blocking=True
                )
                for name, size in (s.cameras or {}).items()
            }
            moved["obs"] = state.to(device, torch.float32, non_blocking=True, copy=True)
            actions = {
                "prefix": self._checked(len(state), prefix, "prefix", range(s.horizon + 1)),
                "warm": self._checked(
                    len(state), warm, "earlier plan", range(s.horizon, s.horizon + 1)
                ),
            }
            return self.predict_on_device(
                moved, **actions, project=project, deadline_s=deadline_s, generator=generator
            )

    def predict_on_device(
        self,
        obs: dict[str, Tensor],
        *,
        prefix: Tensor | None = None,
        warm: Tensor | None = None,
        project: Callable[[Tensor], Tensor] | None = None,
        deadline_s: float | None = None,
        generator: Generators = None,
    ) -> Chunk:
        """Predict as `predict_chunk` does, from valid tensors that are on the policy's device.

        Nothing in it makes the host wait for the device, unless ``project``, ``deadline_s``, a
        generator of the host or an option that stops a descent early does.
        """
        with torch.inference_mode(False), torch.no_grad():
            state = obs["obs"]
            terms = ChunkConstraints(
                warm=None if warm is None else self._network_actions(state, warm),
                project=None if project is None else self._within(state, project),
                deadline_s=deadline_s,
            )
            held = None
            if prefix is not None and prefix.shape[1]:
                own = self._network_actions(state, prefix)
                count, horizon = prefix.shape[1], self.shape.horizon
                padding = (0, 0, 0, horizon - count)
                held = F.pad(prefix, padding)
                committed = torch.arange(horizon, device=state.device).unsqueeze(1) < count
                terms = replace(terms, prefix=F.pad(own, padding), committed=committed)
                features = self.observe(obs, own)
            else:
                features = self.observe(obs)
            chunk = self.refine(features, terms, generator)
            chunk.actions = terms.hold(self.env_actions(state, chunk.actions), held)
            return chunk

    def _checked(self, rows: int, actions: Tensor | None, what: str, lengths: range) -> Any:
        """Actions (B, n, A) that a caller gave, env units, on the policy's device; None if None."""
        if actions is None:
            return None
        s = self.shape
        if actions.ndim != 3 or actions.shape[::2] != (rows, s.action_dim):
            raise ValueError(
                f"the {what} must be ({rows}, P, {s.action_dim}), got {tuple(actions.shape)}."
            )
        if actions.shape[1] not in lengths:
            raise ValueError(
                f"the {what} has {actions.shape[1]} actions, the horizon is {s.horizon}."
            )
        if not bool(actions.isfinite().all()):
            raise ValueError(f"the {what} holds NaN or Inf; give actions in env units.")
        return actions.to(self.device, torch.float32, non_blocking=True, copy=True)

    def _within(self, obs: Tensor, project: Callable[[Tensor], Tensor]):
        """The same projection in the network's units."""
        return lambda x: self._network_actions(obs, project(self.env_actions(obs, x)))

    def compile_prediction(self) -> None:
        """Compile what `predict_chunk` computes, for a control loop: same chunks, less waiting.

        The first chunk of each batch size then takes a minute.
        """
        if self.vision is not None:
            self.vision.compile()
        net: Any = self.get_submodule("net")
        net.compile()
        net.encode = torch.compile(net.encode)

    # -- storage ----------------------------------------------------------------------------

    @property
    def _learned(self) -> dict[str, Any]:
        return {"shape": asdict(self.shape)}

    def _write(self, folder: Path) -> None:
        (folder / "normalizer.json").write_text(json.dumps(self.normalizer.to_json()))

    @classmethod
    def _rebuild(cls, config: dict[str, Any], folder: Path) -> Model:
        with reading(folder / "normalizer.json"):
            normalizer = Normalizer.from_json(json.loads((folder / "normalizer.json").read_text()))
        policy = build_policy(config, normalizer)
        with reading(folder / "normalizer.json"):  # it must fit the shape, not only be whole
            normalizer.normalize("obs", torch.zeros(policy.shape.obs_dim))
            normalizer.normalize("action", torch.zeros(policy.shape.action_dim))
        return policy


def _image(obs: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in obs:
        raise ValueError(
            f'the observation must have the camera "{name}", got {sorted(obs)}: this policy sees.'
        )
    image = obs[name]
    if tuple(image.shape) != shape or image.dtype != torch.uint8:
        raise ValueError(
            f'the camera "{name}" must give {shape} uint8, got {tuple(image.shape)} '
            f"{str(image.dtype).removeprefix('torch.')}."
        )
    return image


POLICIES: Registry[type[Policy]] = Registry("model", "ebt_policy.policies")


def build_policy(config: dict[str, Any], normalizer: Normalizer) -> Policy:
    """Build an untrained policy.

    Args:
        config: sections ``shape`` (see `PolicyShape`), ``size`` (see `TransformerConfig`),
            ``model`` with its ``name``, ``objective`` for energy policies, and ``vision`` (see
            `VisionConfig`) for those that see.
        normalizer: fitted on the training data.

    Raises:
        ConfigError: for an unknown name or option.
    """
    shape = options(PolicyShape, config["shape"], "shape")
    vision = None
    if shape.cameras:
        how = options(VisionConfig, config.get("vision") or {}, "vision")
        vision = VisionEncoder(shape.cameras, how)
    if config["model"]["name"] != "ebt":
        config = {**config, "objective": None}
    return build_model(POLICIES, config, shape, normalizer, build_size(config), vision=vision)


def load_policy(path: str | Path, device: torch.device | str = "cpu") -> Policy:
    """Load any policy from a checkpoint or run folder (`Policy.from_checkpoint`)."""
    return Policy.from_checkpoint(path, device)
