"""robosuite's Lift, Can, Square, Tool Hang and Transport, configured as in robomimic's data sets.

Zhu et al. 2020, "robosuite: A Modular Simulation Framework and Benchmark for Robot Learning";
Mandlekar et al. 2021, "What Matters in Learning from Offline Human Demonstrations".
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from ebt_policy.envs.errors import EnvError
from ebt_policy.envs.manipulation_env import ExpertFn, ManipulationEnv
from ebt_policy.envs.rendering import choose_backend
from ebt_policy.envs.robosuite_tasks import (
    RATE_HZ,
    SCENES,
    absolute_actions,
    from_six_dimensional,
    layout,
    observation,
)

choose_backend()  # robosuite imports MuJoCo, which reads the backend at import.
logging.disable(logging.WARNING)  # robosuite warns about optional files and robots at import.
import robosuite  # noqa: E402
from robosuite.controllers import load_composite_controller_config  # noqa: E402

logging.disable(logging.NOTSET)
logging.getLogger("robosuite_logs").setLevel(logging.ERROR)

POSITION_BOUND = 2.0  # m, largest absolute coordinate in an absolute action
MAX_PUSH_STEPS = 40  # A push against an obstacle ends after this many control periods.
OBSERVATION_VERSION = "1.5"  # robosuite version, which determines the layout of "object"


class RobosuiteEnv(ManipulationEnv):
    """A robosuite task of `ebt_policy.envs.robosuite_tasks.SCENES`.

    Observation: see `ebt_policy.envs.robosuite_tasks.observation`.
    Action "delta", (7,) in [-1, 1] for each arm: translation (1 is 5 cm), rotation vector (1 is
    0.5 rad), gripper (-1 opens, 1 closes), in the world frame.
    Action "absolute", (10,) for each arm: goal position (m), the first two columns of the goal's
    rotation matrix, gripper, in the world frame.
    State: time, qpos, qvel, as in robomimic's files. It lacks the controllers' preferred posture,
    which depends on the seed. Trajectories from a restored state therefore differ slightly.

    Args:
        scene: a key of `SCENES`.
        actions: "delta" or "absolute".
        cameras, image_size, render_mode: as in `ManipulationEnv`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": RATE_HZ}

    def __init__(
        self,
        scene: str,
        actions: str = "delta",
        cameras: Sequence[str] | None = None,
        image_size: int = 84,
        render_mode: str | None = None,
    ) -> None:
        if scene not in SCENES:
            raise EnvError(f"task.scene must be one of {', '.join(SCENES)}, got {scene!r}.")
        if actions not in ("delta", "absolute"):
            raise EnvError(f'task.actions must be "delta" or "absolute", got {actions!r}.')
        self._name, self.scene = scene, SCENES[scene]
        self.absolute = actions == "absolute"
        self.proprioception = 9 * self.scene.arms
        bound = [POSITION_BOUND] * 3 + [1.0] * 7 if self.absolute else [1.0] * 7
        high = np.tile(np.array(bound, dtype=np.float32), self.scene.arms)
        # Some objects have random sizes that are sampled once, here. The fixed seed makes them
        # equal in all environments.
        with _numpy_seed(0):
            self.sim_env: Any = robosuite.make(
                self.scene.env_name,
                robots=["Panda"] * self.scene.arms,
                controller_configs=controllers(absolute=self.absolute),
                has_renderer=False,
                has_offscreen_renderer=bool(cameras) or render_mode is not None,
                use_camera_obs=False,
                use_object_obs=True,
                control_freq=RATE_HZ,
                ignore_done=True,
                lite_physics=True,  # An eighth faster; results are equal up to rounding.
                hard_reset=False,  # The scenes are the same, and meshes are not loaded again.
            )
        sim = self.sim_env
        grasped_objects = {
            "Lift": lambda: sim.cube,
            "Can": lambda: sim.objects[sim.object_id],
            "Square": lambda: sim.nuts[sim.nut_id],
        }
        self._object: Any = grasped_objects[scene]() if scene in grasped_objects else None
        super().__init__(
            spaces.Box(-high, high), layout(self.scene), self.sim_env.sim.model.camera_names,
            grasps=scene in grasped_objects,
            cameras=cameras, image_size=image_size, render_mode=render_mode,
        )  # fmt: skip
        self.render_camera = "agentview" if self.scene.arms == 1 else "shouldercamera0"

    def frame(self, camera: str, size: int) -> np.ndarray:
        image = self.sim_env.sim.render(height=size, width=size, camera_name=camera)
        return np.ascontiguousarray(image[::-1])

    def expert(self, rng: np.random.Generator) -> ExpertFn:
        from ebt_policy.envs.robosuite_experts import EXPERTS

        if self._name not in EXPERTS:
            raise EnvError(
                f"{self._name} has no scripted expert, only {', '.join(EXPERTS)} have one; "
                "use human demonstrations."
            )
        act = EXPERTS[self._name](self.sim_env, rng)
        return (
            (lambda: absolute_actions(self.robosuite_observations(), act()))
            if self.absolute
            else act
        )

    def holding(self) -> bool:
        gripper = self.sim_env.robots[0].gripper["right"]
        return self._object is not None and bool(self.sim_env._check_grasp(gripper, self._object))

    def _push_gripper(self, shift: np.ndarray) -> None:
        if not (distance := np.linalg.norm(shift)):
            return
        relative = np.array([*(shift / distance), 0.0, 0.0, 0.0, self._grip])
        current = start = self.robosuite_observations()
        for _ in range(MAX_PUSH_STEPS):
            if np.linalg.norm(current["robot0_eef_pos"] - start["robot0_eef_pos"]) >= distance:
                break
            self._apply_action(absolute_actions(current, relative) if self.absolute else relative)
            current = self.robosuite_observations()

    def _object_position(self) -> np.ndarray:
        return self.sim_env.sim.data.get_joint_qpos(self._object.joints[0])[:2].copy()

    def _place_object(self, position: np.ndarray) -> bool:
        data, joint = self.sim_env.sim.data, self._object.joints[0]
        pose = data.get_joint_qpos(joint).copy()
        pose[:3] = [*position, self._height]
        data.set_joint_qpos(joint, pose)
        data.set_joint_qvel(joint, np.zeros(6))
        self.sim_env.sim.forward()
        gripper = self.sim_env.robots[0].gripper["right"]
        return not self.sim_env.check_contact(self._object, gripper)

    def _reset_scene(self, seed: int) -> None:
        with _numpy_seed(seed):
            self.sim_env.reset()
        self._grip = -1.0
        if self._object is not None:
            self._height = float(self.sim_env.sim.data.get_joint_qpos(self._object.joints[0])[2])

    def restore(self, state: np.ndarray) -> None:
        self.sim_env.sim.set_state_from_flattened(state)

    def _apply_action(self, action: np.ndarray) -> None:
        self._grip = float(action[-1])
        self.sim_env.step(from_six_dimensional(action) if self.absolute else action)

    @property
    def physics_dt(self) -> float:
        """The time step of the physics, s."""
        return float(self.sim_env.model_timestep)

    def advance(self, action: np.ndarray, steps: int) -> None:
        """Simulate `steps` steps of `physics_dt` with an absolute action (A,).

        Raises:
            EnvError: the environment has relative actions. Each call would add another motion.
        """
        if not self.absolute:
            raise EnvError(
                "actions=delta cannot be executed in parts of a control period; use "
                "actions=absolute (robot.driver.kwargs.actions)."
            )
        self._grip = float(action[-1])
        goal, sim = from_six_dimensional(action), self.sim_env.sim
        for i in range(steps):
            sim.step1()
            self.sim_env._pre_action(goal, policy_step=i == 0)
            sim.step2()

    def compute_reward(self) -> tuple[float, bool]:
        """Return the reward of the current scene, and whether the task is solved."""
        solved = self._is_solved()
        return self._task_progress(solved), solved

    def hold_action(self) -> np.ndarray:
        """Return the absolute action that keeps the arms at their current poses."""
        zero_motion = [0.0] * 6 + [self._grip]
        return absolute_actions(
            self.robosuite_observations(), np.array(zero_motion * self.scene.arms)
        )

    def robosuite_observations(self) -> dict[str, np.ndarray]:
        """Return robosuite's observations of the current scene, name -> array."""
        self.sim_env.sim.forward()  # After a step, positions and orientations lag one time step.
        # Some observations are computed from the previous ones, so two updates are needed.
        self.sim_env._get_observations(force_update=True)
        observations = self.sim_env._get_observations(force_update=True)
        return {**observations, "object": observations["object-state"]}

    def _low_dim_observation(self) -> np.ndarray:
        return observation(self.scene, self.robosuite_observations(), OBSERVATION_VERSION)

    def get_state(self) -> np.ndarray:
        return np.asarray(self.sim_env.sim.get_state().flatten(), dtype=np.float64)

    def _is_solved(self) -> bool:
        return bool(self.sim_env._check_success())


def controllers(*, absolute: bool) -> dict[str, Any]:
    """Return the operational-space controllers of a Panda, as in robomimic's data sets.

    Args:
        absolute: whether actions are goal poses instead of relative motions.
    """
    config: Any = load_composite_controller_config(robot="Panda")
    for part_config in config["body_parts"].values():
        part_config["input_ref_frame"] = "world"
        part_config["input_type"] = "absolute" if absolute else "delta"
    return config


@contextlib.contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator for a block; robosuite 1.5.1 places objects with it."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)
