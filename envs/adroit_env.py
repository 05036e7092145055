"""Adroit: a hand with 24 joints on an arm opens a door (gymnasium-robotics).

Rajeswaran et al. 2018, "Learning Complex Dexterous Manipulation with Deep Reinforcement Learning
and Demonstrations".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from farama_notifications import notifications

from ebt_policy.envs.mujoco_env import (
    MujocoManipulationEnv,  # chooses how MuJoCo renders; before the next
)

# At each import, in each process, it warns of rewards, of which none are used here.
notifications.pop("gymnasium_robotics", None)
from gymnasium_robotics.envs.adroit_hand.adroit_door import AdroitHandDoorEnv  # noqa: E402

CONTROL_HZ = 100
OPEN = 1.35  # rad, hinge of a door that counts as open
LAYOUT = {"joints": 27, "latch": 1, "hinge": 1, "palm": 3, "handle": 3, "to_handle": 3, "open": 1}


class AdroitDoorEnv(MujocoManipulationEnv):
    """Undo the latch and swing the door open.

    Observation: (39,): joints of arm and hand (27, rad), latch and hinge (rad), palm, handle, the
    way from this to that (3 each, m), whether the hinge is beyond 1 rad (1 or -1).
    Action: (28,) in [-1, 1]: positions of all joints within their ranges.
    Reward: the hinge's part of those 1.35 rad at which the door counts as open.
    State: the door's place (3, m), then MuJoCo's state.

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
    def _door(self) -> np.ndarray:
        return self.sim_env.model.body_pos[self.sim_env.door_body_id]

    @property
    def _hinge(self) -> float:
        return float(self.sim_env.data.qpos[self.sim_env.door_hinge_addrs])

    def _start(self, seed: int) -> None:
        self.sim_env.reset(seed=seed)

    def restore(self, state: np.ndarray) -> None:
        self._door[:] = state[:3]
        self._set_dynamics(state[3:])

    def _act(self, action: np.ndarray) -> None:
        self.sim_env.step(action)

    def _low_dim(self) -> np.ndarray:
        self.settle()  # a step leaves palm and handle one time step behind
        return self.sim_env._get_obs()

    def _state(self) -> np.ndarray:
        return np.concatenate([self._door, self._dynamics()])

    def _score(self, solved: bool) -> float:
        return float(np.clip(self._hinge / OPEN, 0.0, 1.0))

    def _solved(self) -> bool:
        return self._hinge >= OPEN
