"""Clearance of all links of an arm, measured by MuJoCo.

Shapes: B batch, M candidates, K actions that are not executed yet, A action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ebt_policy.envs.rendering import import_mujoco
from ebt_policy.errors import ConfigError
from ebt_policy.policies.costs import COSTS, Cost, interpolate

OBSTACLE = "ebt_policy_obstacle_"  # prefix of the names of obstacles in the model


@COSTS.register("arm_clearance")
class ArmClearance(Cost):
    """A distance that all links of an arm must keep from obstacles, for joint-position actions.

    It has no gradient, so it selects among predicted chunks and does not move them. Use it with
    several candidates and ``max_rounds``.

    Args:
        model: path of the arm's MuJoCo XML or URDF file.
        joints: names of hinge or slide joints in the order of the action, in rad or m.
        obstacles: balls as [x, y, z, radius], in m, in the frame of the model.
        margin: distance to keep, m.
        softness: see `Cost`; m.
        points: number of checked positions on the line to each action.

    Raises:
        ConfigError: MuJoCo is not installed, the file is not a model, a joint is missing, or an
            obstacle is malformed.
    """

    differentiable: ClassVar[bool] = False

    def __init__(
        self,
        model: str,
        joints: Sequence[str],
        obstacles: Sequence[Sequence[float]],
        *,
        margin: float = 0.0,
        softness: float = 0.005,
        points: int = 2,
    ) -> None:
        super().__init__(softness)
        if points < 1:
            raise ConfigError(f"points must be at least 1, got {points}.")
        try:
            self._mujoco = import_mujoco()
        except ModuleNotFoundError as error:
            raise ConfigError(
                "the cost arm_clearance needs MuJoCo: pip install 'ebt_policy[robomimic]'."
            ) from error
        self.margin, self.points = float(margin), points
        self._model = self._load(model, obstacles)
        self._data = self._mujoco.MjData(self._model)
        self._addresses = [self._address(name) for name in joints]
        kind = self._mujoco.mjtObj.mjOBJ_GEOM
        names = [f"{OBSTACLE}{i}" for i in range(len(obstacles))]
        balls = [self._mujoco.mj_name2id(self._model, kind, name) for name in names]
        # Geoms of the world are no links, and geoms without contacts are only drawn.
        collides = (self._model.geom_contype | self._model.geom_conaffinity) != 0
        links = np.flatnonzero((self._model.geom_bodyid > 0) & collides)
        self._pairs = [(int(link), ball) for link in links for ball in balls]

    def _load(self, model: str, obstacles: Sequence[Sequence[float]]) -> Any:
        if not Path(model).is_file():
            raise ConfigError(f"model={model} does not exist.")
        try:
            spec = self._mujoco.MjSpec.from_file(str(model))
            for i, ball in enumerate(obstacles):
                *position, radius = ball or [0.0]
                if len(position) != 3 or not radius > 0:
                    raise ConfigError(
                        f"an obstacle must be [x, y, z, radius] with a positive radius, got {ball}."
                    )
                sphere = self._mujoco.mjtGeom.mjGEOM_SPHERE
                spec.worldbody.add_geom(
                    name=f"{OBSTACLE}{i}", type=sphere, pos=position, size=[radius, 0, 0]
                )
            return spec.compile()
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"model={model} is not a MuJoCo or URDF model ({error}).") from error

    def _address(self, joint: str) -> int:
        kind = self._mujoco.mjtObj.mjOBJ_JOINT
        index = self._mujoco.mj_name2id(self._model, kind, joint)
        scalar = (self._mujoco.mjtJoint.mjJNT_HINGE, self._mujoco.mjtJoint.mjJNT_SLIDE)
        if index < 0 or self._model.jnt_type[index] not in scalar:
            raise ConfigError(f"the model of arm_clearance has no hinge or slide joint {joint}.")
        return int(self._model.jnt_qposadr[index])

    def violation(self, chunks: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        path = interpolate(chunks[..., : len(self._addresses)], self.points).double().cpu().numpy()
        depths = [self._depth(position) for position in path.reshape(-1, path.shape[-1])]
        depth = torch.tensor(np.array(depths).reshape(path.shape[:3]))
        return depth.to(chunks) / self.points**0.5

    def _depth(self, position: np.ndarray) -> float:
        """Return the shortfall of the clearance at joint positions (A,) below the margin, m."""
        self._data.qpos[self._addresses] = position
        self._mujoco.mj_kinematics(self._model, self._data)
        nearest = self.margin
        for link, obstacle in self._pairs:
            nearest = min(
                nearest,
                self._mujoco.mj_geomDistance(
                    self._model, self._data, link, obstacle, nearest + 1e-3, None
                ),
            )
        return self.margin - nearest
