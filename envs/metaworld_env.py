"""Meta-World's fifty tasks of a Sawyer arm (v3).

Yu et al. 2020, "Meta-World"; McLean et al. 2025, "Meta-World+".
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ebt_policy.envs.manipulation import Expert
from ebt_policy.envs.mujoco_env import (
    MujocoManipulationEnv,  # chooses how MuJoCo renders; before Meta-World
)

from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # isort: skip
from metaworld.policies import ENV_POLICY_MAP  # isort: skip

warnings.filterwarnings("ignore", module=r"metaworld\.policies")  # its scripts ask for too much
CONTROL_HZ = 80
# Tasks whose object is held, and free otherwise, and whose expert opens the gripper: most scripts
# never do, so that nobody could learn from them how to grasp anew.
PICKED = {"peg-insert-side": "peg", "shelf-place": "objGeom"}  # -> its shape
ONE_FRAME = 18  # numbers of an observation without history and goal


class MetaWorldEnv(MujocoManipulationEnv):
    """One of Meta-World's tasks; objects and goal are drawn anew in every episode.

    Observation: (39,): hand (3, m), gripper's opening, objects (14: position and quaternion of up
    to two), the same one step before, goal (3, m), which is visible.
    Action: (4,) in [-1, 1]: translation of the hand (1 is 1 cm), gripper (1 closes).
    State: what was drawn at the reset, MuJoCo's state, the observation's part from before.

    Args:
        scene: name of the task without version, "door-open".
        cameras, image_size, render_mode: as in `ManipulationEnv`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}
    render_camera = "corner2"
    proprioception = 4  # hand and gripper
    upside_down = ("corner2",)

    def __init__(
        self,
        scene: str,
        cameras: Sequence[str] | None = None,
        image_size: int = 84,
        render_mode: str | None = None,
    ) -> None:
        self._id = f"{scene}-v3"
        if self._id not in ALL_V3_ENVIRONMENTS:
            names = ", ".join(name.removesuffix("-v3") for name in ALL_V3_ENVIRONMENTS)
            raise ValueError(f"Meta-World has no task {scene!r}; it has {names}")
        super().__init__(
            ALL_V3_ENVIRONMENTS[self._id](),
            {"hand": 3, "gripper": 1, "objects": 14, "before": ONE_FRAME, "goal": 3},
            grasps=scene in PICKED, cameras=cameras, image_size=image_size, render_mode=render_mode,
        )  # fmt: skip
        sim = self.sim_env
        sim._partially_observable = False  # the goal is seen,
        del sim.sawyer_observation_space  # and not clipped to the zeros of one that is not
        sim._freeze_rand_vec, sim.seeded_rand_vec = False, True  # drawn by its own generator
        sim._set_task_called = True
        sim.max_path_length = np.inf  # the time limit is gymnasium's
        self._seen = np.zeros(sum(self.layout.values()))
        self._success = False
        self._picked = PICKED.get(scene)

    def expert(self, rng: np.random.Generator) -> Expert:
        """Meta-World's own script for the task; it draws nothing from `rng`."""
        policy = ENV_POLICY_MAP[self._id]()
        return lambda: np.clip(policy.get_action(self._seen), -1.0, 1.0)

    def holding(self) -> bool:
        if self._picked is None:
            return False
        shape = self.sim_env.data.geom(self._picked).id
        return bool(self.sim_env.touching_object(shape))

    def _push(self, shift: np.ndarray) -> None:
        steps = int(np.ceil(np.linalg.norm(shift) * 100))  # of 1 cm
        for moving in [True] * steps + [False] * steps:  # it follows late
            self._act(np.array([*(moving * shift * 100 / steps), self._grip]))

    def _place(self) -> np.ndarray:
        return self.sim_env.data.qpos[9:11].copy()

    def _lay(self, place: np.ndarray) -> bool:
        sim = self.sim_env
        sim._set_obj_xyz(np.append(place, sim.obj_init_pos[2]))
        self.settle()
        self._seen = sim._get_obs()
        return not self.holding()

    def _start(self, seed: int) -> None:
        self.sim_env.seed(seed)
        self._seen, _ = self.sim_env.reset()
        self._grip = -1.0

    def restore(self, state: np.ndarray) -> None:
        sim, drawn = self.sim_env, len(self.sim_env._last_rand_vec)
        if not np.array_equal(state[:drawn], sim._last_rand_vec):  # it moves parts of the model
            sim._freeze_rand_vec, sim._last_rand_vec = True, state[:drawn].copy()
            sim.reset()
            sim._freeze_rand_vec = False
        self._set_dynamics(state[drawn:-ONE_FRAME])
        sim._prev_obs = state[-ONE_FRAME:].copy()
        self._seen = sim._get_obs()

    def _act(self, action: np.ndarray) -> None:
        self._grip = float(action[-1])
        self._seen, _, _, _, info = self.sim_env.step(action.astype(np.float32))
        self._success = bool(info["success"])

    def _low_dim(self) -> np.ndarray:
        return self._seen

    def _state(self) -> np.ndarray:
        before = self._seen[ONE_FRAME : 2 * ONE_FRAME]
        return np.concatenate([self.sim_env._last_rand_vec, self._dynamics(), before])

    def _solved(self) -> bool:
        return self._success
