"""The fifty Meta-World tasks (v3) with a Sawyer arm.

Yu et al. 2020, "Meta-World"; McLean et al. 2025, "Meta-World+".
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ebt_policy.envs.errors import EnvError
from ebt_policy.envs.manipulation_env import ExpertFn

# Imported before Meta-World, because it selects the rendering backend before MuJoCo is imported.
from ebt_policy.envs.mujoco_env import MujocoManipulationEnv

from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # isort: skip
from metaworld.policies import ENV_POLICY_MAP  # isort: skip

# Meta-World's scripts warn that their actions exceed the range; they are clipped here.
warnings.filterwarnings("ignore", module=r"metaworld\.policies")
CONTROL_HZ = 80
# Tasks with object perturbations -> geom of the object. They have a free object and an expert that
# opens the gripper again. Most experts never do, so policies cannot learn from them to re-grasp.
GRASPED_GEOM = {"peg-insert-side": "peg", "shelf-place": "objGeom"}
FRAME_WIDTH = 18  # width of an observation without the previous step and the goal


class MetaWorldEnv(MujocoManipulationEnv):
    """A Meta-World task; the positions of objects and goal are sampled in every episode.

    Observation: (39,): hand (3, m), gripper opening, objects (14: position and quaternion of up to
    two), the same 18 values one step before, and the goal (3, m).
    Action: (4,) in [-1, 1]: translation of the hand (1 is 1 cm), gripper (1 closes).
    State: the vector sampled at the reset, MuJoCo's integration state, and the 18 observed values
    of the previous step.

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
        sim._partially_observable = False  # The goal is part of the observation.
        # The cached space would clip the goal to zero, so it is computed again.
        del sim.sawyer_observation_space
        sim._freeze_rand_vec, sim.seeded_rand_vec = False, True  # sampled by its own generator
        sim._set_task_called = True
        sim.max_path_length = np.inf  # gymnasium's wrapper has the time limit.
        self._observation = np.zeros(sum(self.layout.values()))
        self._success = False
        self._grasped_geom = GRASPED_GEOM.get(scene)

    def expert(self, rng: np.random.Generator) -> ExpertFn:
        """Return Meta-World's own scripted policy for the task; it does not use `rng`."""
        policy = ENV_POLICY_MAP[self._id]()
        return lambda: np.clip(policy.get_action(self._observation), -1.0, 1.0)

    def holding(self) -> bool:
        if self._grasped_geom is None:
            return False
        geom_id = self.sim_env.data.geom(self._grasped_geom).id
        return bool(self.sim_env.touching_object(geom_id))

    def _push_gripper(self, shift: np.ndarray) -> None:
        steps = int(np.ceil(np.linalg.norm(shift) * 100))  # of at most 1 cm each
        # The hand lags behind its target, so as many steps without motion follow.
        for is_moving in [True] * steps + [False] * steps:
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
        sim = self.sim_env
        sim.reset()
        self.settle()  # It moved bodies of the model, such as the drawer, without an update.
        sim._prev_obs = sim._get_curr_obs_combined_no_goal()
        self._observation = sim._get_obs()
        self._grip = -1.0

    def restore(self, state: np.ndarray) -> None:
        sim, width = self.sim_env, len(self.sim_env._last_rand_vec)
        # The sampled vector sets positions in the model, so another vector requires a reset.
        if not np.array_equal(state[:width], sim._last_rand_vec):
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
