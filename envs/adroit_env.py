"""Adroit door: a hand with 24 joints, mounted on an arm, opens a door (gymnasium-robotics).

Rajeswaran et al. 2018, "Learning Complex Dexterous Manipulation with Deep Reinforcement Learning
and Demonstrations".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from farama_notifications import notifications

# This import comes first, because it selects the rendering backend before MuJoCo is imported.
from ebt_policy.envs.mujoco_env import MujocoManipulationEnv

# Importing gymnasium-robotics prints a warning about dense rewards, which are not used here.
notifications.pop("gymnasium_robotics", None)
from gymnasium_robotics.envs.adroit_hand.adroit_door import AdroitHandDoorEnv  # noqa: E402

CONTROL_HZ = 100
OPEN_ANGLE = 1.35  # rad, smallest hinge angle at which the door counts as open
LAYOUT = {"joints": 27, "latch": 1, "hinge": 1, "palm": 3, "handle": 3, "to_handle": 3, "open": 1}


class AdroitDoorEnv(MujocoManipulationEnv):
    """The task to undo the latch of a door and swing it open.

    Observation: (39,): joints of arm and hand (27, rad), latch and hinge (rad), positions of palm
    and handle and the vector between them (3 each, m), and whether the hinge is beyond 1 rad (1 or
    -1).
    Action: (28,) in [-1, 1]: target positions of all joints, scaled to their ranges.
    Reward: hinge angle / 1.35 rad, clipped to [0, 1].
    State: position of the door (3, m), then MuJoCo's integration state.

    Args:
        cameras, image_size, render_mode: as in `ManipulationEnv`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}
    render_camera = "fixed"
    proprioception = 27  # joints

    def __init__(
        self,
        cameras: Sequence[str] | None = None,
        image_size: int = 84,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(
            AdroitHandDoorEnv(), LAYOUT,
            cameras=cameras, image_size=image_size, render_mode=render_mode,
        )  # fmt: skip

    @property
    def _door_position(self) -> np.ndarray:
        return self.sim_env.model.body_pos[self.sim_env.door_body_id]

    @property
    def _hinge_angle(self) -> float:
        return float(self.sim_env.data.qpos[self.sim_env.door_hinge_addrs])

    def _reset_scene(self, seed: int) -> None:
        self.sim_env.reset(seed=seed)

    def restore(self, state: np.ndarray) -> None:
        self._door_position[:] = state[:3]
        self._set_dynamics(state[3:])

    def _apply_action(self, action: np.ndarray) -> None:
        self.sim_env.step(action)

    def _low_dim_observation(self) -> np.ndarray:
        self.settle()  # After a step, the positions of palm and handle lag one time step.
        return self.sim_env._get_obs()

    def get_state(self) -> np.ndarray:
        return np.concatenate([self._door_position, self._dynamics()])

    def _task_progress(self, is_solved: bool) -> float:
        return float(np.clip(self._hinge_angle / OPEN_ANGLE, 0.0, 1.0))

    def _is_solved(self) -> bool:
        return self._hinge_angle >= OPEN_ANGLE
