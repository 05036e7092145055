"""The fifty Meta-World tasks of a Sawyer arm (v3).

Yu et al. 2020, "Meta-World"; McLean et al. 2025, "Meta-World+".
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ebt_policy.envs.errors import EnvError
from ebt_policy.envs.manipulation_env import ExpertFn

# Imported before Meta-World: it selects the rendering backend before MuJoCo is imported.
from ebt_policy.envs.mujoco_env import MujocoManipulationEnv

from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # isort: skip
from metaworld.policies import ENV_POLICY_MAP  # isort: skip

# Meta-World's scripts warn that their actions exceed the range.
warnings.filterwarnings("ignore", module=r"metaworld\.policies")
CONTROL_HZ = 80
# Task -> geometry of its object. Only tasks with a free object whose expert opens the gripper:
# most scripts never do, so a policy could not learn from them to grasp again.
GRASPED_GEOM = {"peg-insert-side": "peg", "shelf-place": "objGeom"}
FRAME_WIDTH = 18  # width of an observation without history and goal


class MetaWorldEnv(MujocoManipulationEnv):
    """A Meta-World task; the positions of objects and goal are sampled in every episode.

    Observation: (39,): hand (3, m), gripper opening, objects (14: position and quaternion of up to
    two), the same one step before, goal (3, m), which is visible.
    Action: (4,) in [-1, 1]: translation of the hand (1 is 1 cm), gripper (1 closes).
    State: the vector sampled at the reset, MuJoCo's state, the previous frame of the observation.

    Args:
        scene: name of the task without version, for example "door-open".
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
            raise EnvError(f"Meta-World has no task {scene!r}; task.scene may be {names}.")
        super().__init__(
            ALL_V3_ENVIRONMENTS[self._id](),
            {"hand": 3, "gripper": 1, "objects": 14, "before": FRAME_WIDTH, "goal": 3},
            grasps=scene in GRASPED_GEOM,
            cameras=cameras, image_size=image_size, render_mode=render_mode,
        )  # fmt: skip
        sim = self.sim_env
        sim._partially_observable = False  # the goal is observed,
        del sim.sawyer_observation_space  # and not clipped to zero as an unobserved goal is
        sim._freeze_rand_vec, sim.seeded_rand_vec = False, True  # sampled by its own generator
        sim._set_task_called = True
        sim.max_path_length = np.inf  # the time limit is gymnasium's
        self._observation = np.zeros(sum(self.layout.values()))
        self._success = False
        self._grasped_geom = GRASPED_GEOM.get(scene)

    def expert(self, rng: np.random.Generator) -> ExpertFn:
        """Return Meta-World's own script for the task; it draws nothing from `rng`."""
        policy = ENV_POLICY_MAP[self._id]()
        return lambda: np.clip(policy.get_action(self._observation), -1.0, 1.0)

    def holding(self) -> bool:
        if self._grasped_geom is None:
            return False
        geom_id = self.sim_env.data.geom(self._grasped_geom).id
        return bool(self.sim_env.touching_object(geom_id))

    def _push_gripper(self, shift: np.ndarray) -> None:
        steps = int(np.ceil(np.linalg.norm(shift) * 100))  # of 1 cm
        for is_moving in [True] * steps + [False] * steps:  # the hand lags behind its target
            self._apply_action(np.array([*(is_moving * shift * 100 / steps), self._grip]))

    def _object_position(self) -> np.ndarray:
        return self.sim_env.data.qpos[9:11].copy()

    def _place_object(self, position: np.ndarray) -> bool:
        sim = self.sim_env
        sim._set_obj_xyz(np.append(position, sim.obj_init_pos[2]))
        self.settle()
        self._observation = sim._get_obs()
        return not self.holding()

    def _reset_scene(self, seed: int) -> None:
        self.sim_env.seed(seed)
        self._observation, _ = self.sim_env.reset()
        self._grip = -1.0

    def restore(self, state: np.ndarray) -> None:
        sim, width = self.sim_env, len(self.sim_env._last_rand_vec)
        if not np.array_equal(state[:width], sim._last_rand_vec):  # it positions parts of the model
            sim._freeze_rand_vec, sim._last_rand_vec = True, state[:width].copy()
            sim.reset()
            sim._freeze_rand_vec = False
        self._set_dynamics(state[width:-FRAME_WIDTH])
        sim._prev_obs = state[-FRAME_WIDTH:].copy()
        self._observation = sim._get_obs()

    def _apply_action(self, action: np.ndarray) -> None:
        self._grip = float(action[-1])
        self._observation, _, _, _, info = self.sim_env.step(action.astype(np.float32))
        self._success = bool(info["success"])

    def _low_dim_observation(self) -> np.ndarray:
        return self._observation

    def get_state(self) -> np.ndarray:
        previous_frame = self._observation[FRAME_WIDTH : 2 * FRAME_WIDTH]
        return np.concatenate([self.sim_env._last_rand_vec, self._dynamics(), previous_frame])

    def _is_solved(self) -> bool:
        return self._success
