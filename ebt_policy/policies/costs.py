"""Costs of action chunks, which are added to a policy at prediction.

A cost is any function ``cost(chunks, obs)``. It maps chunks (B, M, K, A), the actions of M
candidates from the next one on, and the observation to numbers (B, M), in nats. A cost is 0 if it
is met and positive otherwise. If a policy's scores are likelihoods (``objective=flow``), a chunk of
cost c counts like a chunk that is exp(c) times less likely. Chunks and the observation are in env
units (see `ChunkConstraints`).

A cost whose attribute ``differentiable`` is True also moves chunks while they are predicted. Other
costs, for example a simulator's answer, only select among predicted chunks.

The costs of this module grow with the square of a violation. Their option ``softness`` is the
violation that costs one nat.

Shapes: B batch, M candidates, T horizon, To observations, K = T - To + 1 actions, A action
dimension, D entries of an action.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ebt_policy.config import options
from ebt_policy.errors import ConfigError, UserError
from ebt_policy.registry import Registry

CostFunction = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
COSTS: Registry[type[Cost]] = Registry("cost", "ebt_policy.costs")
COSTS.declare("arm_clearance", "ebt_policy.policies.arm_costs:ArmClearance")  # needs MuJoCo


class CostError(UserError, ValueError):
    """A cost that failed, or that returned a negative or non-finite value."""


class Cost(ABC):
    """Base of costs that grow with the square of a violation.

    Args:
        softness: violation that costs one nat, in env units.

    Raises:
        ConfigError: an option is invalid.
    """

    differentiable: ClassVar[bool] = True

    def __init__(self, softness: float) -> None:
        if not softness > 0:
            raise ConfigError(f"softness must be positive, got {softness}.")
        self.softness = float(softness)

    def __call__(self, chunks: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        violation = self.violation(chunks, obs)
        return (violation / self.softness).square().sum(-1)

    @abstractmethod
    def violation(self, chunks: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """Return violations (B, M, any number), 0 where the cost is met, in env units."""


class PathCost(Cost):
    """Base of costs on positions along the straight lines between consecutive actions.

    Args:
        dims: indices of the D entries of an action that are a position.
        softness: see `Cost`.
        points: number of points on the line to each action. A point counts 1 / points of an action.
    """

    def __init__(self, dims: Sequence[int], softness: float, points: int) -> None:
        super().__init__(softness)
        if points < 1:
            raise ConfigError(f"points must be at least 1, got {points}.")
        self.dims, self.points = list(dims), points

    def violation(self, chunks: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        path = interpolate(chunks[..., self.dims], self.points)
        return self.depth(path) / self.points**0.5

    @abstractmethod
    def depth(self, path: Tensor) -> Tensor:
        """Return violations (B, M, P) of positions (B, M, P, D)."""


@COSTS.register("keep_out")
class KeepOut(PathCost):
    """A disc, a ball or another round region that the path must not enter.

    Args:
        center: (D,) centre of the region, in env units. The attribute ``center``, a tensor, may be
            replaced between predictions.
        radius: radius of the region, including the size of the robot.
        margin: distance to keep from the region.
        dims, softness, points: see `PathCost`.

    >>> cost = KeepOut(center=[0.0, 0.0], radius=1.0, softness=0.5, points=1)
    >>> cost(torch.tensor([[[[0.5, 0.0]], [[3.0, 0.0]]]]), {}).tolist()
    [[1.0, 0.0]]
    """

    def __init__(
        self,
        center: Sequence[float],
        radius: float,
        *,
        margin: float = 0.0,
        dims: Sequence[int] = (0, 1),
        softness: float = 1.0,
        points: int = 4,
    ) -> None:
        super().__init__(dims, softness, points)
        self.center = parse_vector(center, "center", dims)
        if not radius > 0:
            raise ConfigError(f"radius must be positive, got {radius}.")
        self.clearance = torch.tensor(float(radius + margin))

    def depth(self, path: Tensor) -> Tensor:
        return (self.clearance.to(path) - safe_norm(path - self.center.to(path))).clamp(min=0)


@COSTS.register("keep_in")
class KeepIn(PathCost):
    """A box that the path must not leave.

    Args:
        low, high: (D,) corners of the box, in env units.
        margin: distance to keep from the sides.
        dims, softness, points: see `PathCost`.
    """

    def __init__(
        self,
        low: Sequence[float],
        high: Sequence[float],
        *,
        margin: float = 0.0,
        dims: Sequence[int] = (0, 1),
        softness: float = 1.0,
        points: int = 1,
    ) -> None:
        super().__init__(dims, softness, points)
        self.low = parse_vector(low, "low", dims) + margin
        self.high = parse_vector(high, "high", dims) - margin
        if not bool((self.low < self.high).all()):
            raise ConfigError(f"low={low} must be below high={high} by more than two margins.")

    def depth(self, path: Tensor) -> Tensor:
        below, above = self.low.to(path) - path, path - self.high.to(path)
        return safe_norm(torch.maximum(below, above).clamp(min=0)) - 1e-6


@COSTS.register("waypoint")
class Waypoint(Cost):
    """A position that the action ``step`` must reach, or any action if ``step`` is None.

    Args:
        position: (D,), in env units.
        step: index of the action, 0 for the next one; None for the closest action.
        tolerance: distance that costs nothing.
        dims: indices of the D entries of an action that are the position.
        softness: see `Cost`.
    """

    def __init__(
        self,
        position: Sequence[float],
        *,
        step: int | None = None,
        tolerance: float = 0.0,
        dims: Sequence[int] = (0, 1),
        softness: float = 1.0,
    ) -> None:
        super().__init__(softness)
        self.position, self.dims = parse_vector(position, "position", dims), list(dims)
        self.step, self.tolerance = step, tolerance

    def violation(self, chunks: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        offset = chunks[..., self.dims] - self.position.to(chunks)
        distance = safe_norm(offset)
        if self.step is None:
            distance = distance.min(-1, keepdim=True).values
        else:
            distance = distance[..., self.step, None]
        return (distance - self.tolerance).clamp(min=0)


@COSTS.register("max_travel")
class MaxTravel(Cost):
    """A limit of the distance between consecutive actions, and so of the speed.

    Args:
        distance: largest distance, in env units per action.
        dims: indices of the entries of an action between which the distance is measured.
        softness: see `Cost`.
    """

    def __init__(
        self, distance: float, *, dims: Sequence[int] = (0, 1), softness: float = 1.0
    ) -> None:
        super().__init__(softness)
        if not distance > 0:
            raise ConfigError(f"distance must be positive, got {distance}.")
        self.distance, self.dims = float(distance), list(dims)

    def violation(self, chunks: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        travel = chunks[..., self.dims].diff(dim=-2)
        return (safe_norm(travel) - self.distance).clamp(min=0)


@COSTS.register("smoothness")
class Smoothness(Cost):
    """A cost of the third difference of consecutive actions, the jerk.

    Args:
        dims: indices of the entries of an action; None for all.
        softness: see `Cost`.
    """

    def __init__(self, *, dims: Sequence[int] | None = None, softness: float = 1.0) -> None:
        super().__init__(softness)
        self.dims = None if dims is None else list(dims)

    def violation(self, chunks: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        selected = chunks if self.dims is None else chunks[..., self.dims]
        return selected.diff(n=3, dim=-2).flatten(2)


@COSTS.register("nudge")
class Nudge(Cost):
    """A push by a person: the chunk must move at least this far in this direction.

    Args:
        offset: (D,) displacement from the first action to the action ``step``, in env units.
        step: index of the action.
        dims: indices of the D entries of an action that are a position.
        softness: see `Cost`.
    """

    def __init__(
        self,
        offset: Sequence[float],
        *,
        step: int = 7,
        dims: Sequence[int] = (0, 1),
        softness: float = 1.0,
    ) -> None:
        super().__init__(softness)
        self.offset = parse_vector(offset, "offset", dims)
        if not float(self.offset.norm()) > 0:
            raise ConfigError(f"offset must not be zero, got {list(offset)}.")
        self.step, self.dims = step, list(dims)

    def violation(self, chunks: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        length = self.offset.norm()
        moved = chunks[..., self.step, self.dims] - chunks[..., 0, self.dims]
        along = (moved * (self.offset / length).to(chunks)).sum(-1)
        return (length.to(chunks) - along).clamp(min=0).unsqueeze(-1)


def parse_vector(values: Sequence[float], name: str, dims: Sequence[int]) -> Tensor:
    """Return numbers (D,) of an option as a tensor.

    Raises:
        ConfigError: there is not one finite number for each of ``dims``.
    """
    if len(values) != len(dims) or not all(map(math.isfinite, values)):
        raise ConfigError(
            f"{name} must have {len(dims)} finite numbers, one for each of dims={list(dims)}, got "
            f"{list(values)}."
        )
    return torch.tensor(values, dtype=torch.float32)


def safe_norm(x: Tensor) -> Tensor:
    """Return the norms (...) of vectors (..., D), with a finite gradient at zero."""
    return (x.square().sum(-1) + 1e-12).sqrt()


def interpolate(path: Tensor, points: int) -> Tensor:
    """Return positions on the lines between consecutive ones.

    Args:
        path: (..., K, D).
        points: number of points on each line, without its start.

    Returns:
        (..., 1 + (K - 1) * points, D), which begins with the first position.

    >>> interpolate(torch.tensor([[0.0], [2.0]]), points=2).flatten().tolist()
    [0.0, 1.0, 2.0]
    """
    if points == 1:
        return path
    start, stop = path[..., :-1, None, :], path[..., 1:, None, :]
    fraction = torch.arange(1, points + 1, device=path.device, dtype=path.dtype) / points
    between = start + fraction.unsqueeze(-1) * (stop - start)  # (..., K - 1, points, D)
    return torch.cat([path[..., :1, :], between.flatten(-3, -2)], dim=-2)


def build_costs(section: Sequence[Mapping[str, Any]], option: str) -> list[Cost]:
    """Build costs from a configuration.

    Args:
        section: for each cost its ``name`` in `COSTS` and its options.
        option: option of the section, for messages, such as ``robot.costs``.

    Raises:
        ConfigError: a name or an option is unknown or invalid.
    """
    costs = []
    for i, entry in enumerate(section):
        cost_options = dict(entry)
        if "name" not in cost_options:
            raise ConfigError(f"{option}[{i}] needs the option name, one of {', '.join(COSTS)}.")
        cls = COSTS.get(cost_options.pop("name"))
        costs.append(options(cls, cost_options, f"{option}[{i}]"))
    return costs
