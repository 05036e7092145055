"""Messages between a client and a policy server, see docs/reference/policy_server.md.

Shapes: T `horizon`, To `n_obs_steps`, Do observation and A action dimension, P committed actions,
H x W pixels of a camera.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebt_policy import __version__
from ebt_policy.config import options
from ebt_policy.io.messages import MessageError
from ebt_policy.policies import Policy, PolicyShape

STATE, IMAGES = "observation.state", "observation.images."
PREFIX, WARM_START, SEED, DEADLINE = "prefix", "warm_start", "seed", "deadline_s"
OPTIONAL = (PREFIX, WARM_START, SEED, DEADLINE)
TOKEN_VARIABLE = "EBT_POLICY_TOKEN"
AUTHORIZATION = "Api-Key"  # the scheme of openpi-client
HEALTH_PATH = "/healthz"
MESSAGE_OVERHEAD = 64 * 1024  # bytes of a message beyond its arrays


@dataclass(frozen=True)
class Request:
    """A checked request of one client.

    Attributes:
        obs: "obs" (To, Do) float32 and (To, H, W, 3) uint8 for each camera, under its name.
        prefix: (P, A), committed actions, see `ChunkConstraints`; None without them.
        warm_start: (T, A), an earlier plan; None without one.
        seed: seed of the noise; None for arbitrary noise.
        deadline_s: time limit of the refinement, s; None without one.
    """

    obs: dict[str, Tensor]
    prefix: Tensor | None = None
    warm_start: Tensor | None = None
    seed: int | None = None
    deadline_s: float | None = None

    @property
    def batch_key(self) -> tuple[int, bool, float | None]:
        """Requests with equal keys can be predicted as one batch."""
        num_committed = 0 if self.prefix is None else len(self.prefix)
        return (num_committed, self.warm_start is None, self.deadline_s)


def observation_keys(shape: PolicyShape) -> list[str]:
    """Return the keys of an observation in a request."""
    return [STATE, *(IMAGES + camera for camera in shape.cameras or {})]


def server_metadata(policy: Policy) -> dict[str, Any]:
    """Return the first message of a server: what the policy reads and predicts."""
    return {
        "policy": policy.name,
        "parameters": policy.parameter_count,
        "weights": _fingerprint(policy),
        "ebt_policy": __version__,
        "shape": asdict(policy.shape),
        "observation": observation_keys(policy.shape),
    }


def _fingerprint(policy: Policy) -> str:
    """Return a hash of the weights, which tells policies of equal shape apart."""
    digest = hashlib.sha256()
    for name, tensor in sorted(policy.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def shape_of(metadata: dict[str, Any]) -> PolicyShape:
    """Return the shape of the policy of a server.

    Raises:
        MessageError: the metadata is that of another kind of server.
    """
    shape = metadata.get("shape")
    if not isinstance(shape, dict):
        raise MessageError(
            "the server is no policy server of ebt_policy: its metadata lacks shape."
        )
    return options(PolicyShape, shape, "the server's shape")


def example_requests(policy: Policy, *, all_kinds: bool) -> list[Request]:
    """Return valid requests, to warm up a policy: the middle of the observations it has seen.

    Args:
        policy: the policy.
        all_kinds: whether there is a request with and without committed actions and an earlier
            plan, which need compiled programs of their own.
    """
    shape = policy.shape
    middle = policy.normalizer.unnormalize("obs", torch.zeros(shape.obs_dim, device=policy.device))
    obs = {"obs": middle.cpu().expand(shape.n_obs_steps, -1)}
    for camera, size in (shape.cameras or {}).items():
        obs[camera] = torch.zeros(shape.n_obs_steps, *size, 3, dtype=torch.uint8)
    if not all_kinds:
        return [Request(obs)]
    actions = policy.unnormalize_actions(
        obs["obs"][None].to(policy.device),
        torch.zeros(1, shape.horizon, shape.action_dim, device=policy.device),
    )[0].cpu()
    prefixes, plans = (None, actions[:1]), (None, actions)
    return [Request(obs, prefix, plan) for prefix in prefixes for plan in plans]


def message_limit(shape: PolicyShape) -> int:
    """Return the size of the longest valid request, bytes."""
    pixels = sum(3 * height * width for height, width in (shape.cameras or {}).values())
    numbers = shape.n_obs_steps * shape.obs_dim + 2 * shape.horizon * shape.action_dim
    return shape.n_obs_steps * pixels + 8 * numbers + MESSAGE_OVERHEAD


def read_request(message: dict[str, Any], shape: PolicyShape) -> Request:
    """Check a message of a client.

    Raises:
        MessageError: a key is missing or unknown, or its value does not fit the policy.
    """
    required = observation_keys(shape)
    if missing := [key for key in required if key not in message]:
        raise MessageError(f"the message has no {', '.join(missing)}.")
    if unknown := [key for key in message if key not in (*required, *OPTIONAL)]:
        raise MessageError(
            f"unknown key {', '.join(unknown)}; this policy reads {', '.join(required)} and, "
            f"optionally, {', '.join(OPTIONAL)}."
        )
    steps, action_dim = shape.n_obs_steps, shape.action_dim
    obs = {"obs": _numbers(message, STATE, (steps, shape.obs_dim))}
    for camera, size in (shape.cameras or {}).items():
        obs[camera] = _image(message, IMAGES + camera, (steps, *size, 3))
    prefix = warm_start = None
    if message.get(PREFIX) is not None:
        prefix = _numbers(message, PREFIX, (None, action_dim))
        if not 0 < len(prefix) <= shape.horizon:
            raise MessageError(f"prefix must have 1 to {shape.horizon} actions, got {len(prefix)}.")
    if message.get(WARM_START) is not None:
        warm_start = _numbers(message, WARM_START, (shape.horizon, action_dim))
    return Request(obs, prefix, warm_start, _seed(message), _deadline(message))


def _array(message: dict[str, Any], key: str, shape: tuple[int | None, ...]) -> np.ndarray:
    value = message[key]
    expected = str(tuple("P" if n is None else n for n in shape)).replace("'", "")
    if not isinstance(value, np.ndarray):
        raise MessageError(f"{key} must be an array {expected}, got {type(value).__name__}.")
    if value.ndim != len(shape) or any(
        n not in (None, size) for n, size in zip(shape, value.shape, strict=True)
    ):
        raise MessageError(f"{key} must have the shape {expected}, got {value.shape}.")
    return value


def _numbers(message: dict[str, Any], key: str, shape: tuple[int | None, ...]) -> Tensor:
    array = _array(message, key, shape)
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise MessageError(f"{key} contains NaN or infinity.")
    return torch.from_numpy(numbers)


def _image(message: dict[str, Any], key: str, shape: tuple[int, ...]) -> Tensor:
    array = _array(message, key, shape)
    if array.dtype != np.uint8:
        raise MessageError(f"{key} must be uint8, got {array.dtype}.")
    return torch.from_numpy(array.copy())


def _seed(message: dict[str, Any]) -> int | None:
    seed = message.get(SEED)
    is_seed = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if seed is None or (is_seed and 0 <= seed < 2**63):
        return None if seed is None else int(seed)
    raise MessageError(f"seed must be an integer from 0 to 2^63 - 1, got {seed!r:.40}.")


def _deadline(message: dict[str, Any]) -> float | None:
    deadline = message.get(DEADLINE)
    if deadline is None:
        return None
    is_number = isinstance(deadline, int | float | np.integer | np.floating)
    if is_number and not isinstance(deadline, bool) and 0 < deadline < np.inf:
        return float(deadline)
    raise MessageError(f"deadline_s must be a positive number of seconds, got {deadline!r:.40}.")
