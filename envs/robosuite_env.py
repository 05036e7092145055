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
from ebt_policy.envs.joint_actions import joint_goals, joint_positions
from ebt_policy.envs.manipulation_env import ExpertFn, ManipulationEnv
from ebt_policy.envs.rendering import choose_backend
from ebt_policy.envs.robosuite_tasks import (
    OBSERVATION_VERSION,
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
from robosuite.controllers import (  # noqa: E402
    load_composite_controller_config,
    load_part_controller_config,
)

logging.disable(logging.NOTSET)
logging.getLogger("robosuite_logs").setLevel(logging.ERROR)

# Action type -> largest absolute values of an action of one arm.
ACTION_BOUNDS = {
    "delta": [1.0] * 7,
    "absolute": [2.0] * 3 + [1.0] * 7,  # position, m
    "joints": [4.0] * 7 + [1.0],  # rad
}
JOINT_STIFFNESS = 150.0  # 1/s^2, as in the operational-space controller
MAX_PUSH_STEPS = 40  # A push against an obstacle ends after this many control periods.


class RobosuiteEnv(ManipulationEnv):
    """A robosuite task of `ebt_policy.envs.robosuite_tasks.SCENES`.

    Observation: see `ebt_policy.envs.robosuite_tasks.observation`.
    Action "delta", (7,) in [-1, 1] for each arm: translation (1 is 5 cm), rotation vector (1 is
    0.5 rad), gripper (-1 opens, 1 closes), in the world frame.
    Action "absolute", (10,) for each arm: goal position (m), the first two columns of the goal's
    rotation matrix, gripper, in the world frame.
    Action "joints", (8,) for each arm: goal positions of the joints (rad), gripper.
    State: time, qpos, qvel, as in robomimic's files. It lacks the controllers' preferred posture,
    which depends on the seed. Trajectories from a restored state therefore differ slightly.

    Args:
        scene: a key of `SCENES`.
        actions: "delta", "absolute" or "joints".
        cameras, image_size, render_mode: as in `ManipulationEnv`.
        keys: names of observations of robosuite, and "object"; the observation joins them instead.
            For policies of robomimic.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": RATE_HZ}

    def __init__(
        self,
        scene: str,
        actions: str = "delta",
        cameras: Sequence[str] | None = None,
        image_size: int = 84,
        render_mode: str | None = None,
        keys: Sequence[str] | None = None,
    ) -> None:
        if scene not in SCENES:
            raise EnvError(f"task.scene must be one of {', '.join(SCENES)}, got {scene!r}.")
        if actions not in ACTION_BOUNDS:
            raise EnvError(
                f"the actions of robosuite's tasks are {', '.join(ACTION_BOUNDS)}, got {actions!r}."
            )
        self._name, self.scene, self.actions = scene, SCENES[scene], actions
        joints = {"joint_pos": 7 * self.scene.arms} if actions == "joints" else {}
        self.proprioception = 9 * self.scene.arms + sum(joints.values())
        high = np.tile(np.array(ACTION_BOUNDS[actions], dtype=np.float32), self.scene.arms)
        # Some objects have random sizes that are sampled once, here. The fixed seed makes them
        # equal in all environments.
        with _numpy_seed(0):
            self.sim_env: Any = robosuite.make(
                self.scene.env_name,
                robots=["Panda"] * self.scene.arms,
                controller_configs=controllers(actions),
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
        parts = joints | layout(self.scene)
        self._keys = keys
        if keys is not None:
            observed = self.robosuite_observations()
            if unknown := [key for key in keys if key not in observed]:
                raise EnvError(
                    f"robosuite has no observation {unknown[0]}; it has {', '.join(observed)}."
                )
            parts = {key: observed[key].size for key in keys}
            self.proprioception = sum(parts.values())
        super().__init__(
            spaces.Box(-high, high), parts, sim.sim.model.camera_names,
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
        return lambda: self._convert(act())

    def holding(self) -> bool:
        gripper = self.sim_env.robots[0].gripper["right"]
        return self._object is not None and bool(self.sim_env._check_grasp(gripper, self._object))

    def _push_gripper(self, shift: np.ndarray) -> None:
        if not (distance := np.linalg.norm(shift)):
            return
        relative = np.array([*(shift / distance), 0.0, 0.0, 0.0, *self._grips])
        current = start = self.robosuite_observations()
        for _ in range(MAX_PUSH_STEPS):
            if np.linalg.norm(current["robot0_eef_pos"] - start["robot0_eef_pos"]) >= distance:
                break
            self._apply_action(self._convert(relative))
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
        self._grips = np.full(self.scene.arms, -1.0)
        if self._object is not None:
            self._height = float(self.sim_env.sim.data.get_joint_qpos(self._object.joints[0])[2])

    def restore(self, state: np.ndarray) -> None:
        self.sim_env.sim.set_state_from_flattened(state)

    def _apply_action(self, action: np.ndarray) -> None:
        self._remember_grips(action)
        self.sim_env.step(self._controller_input(action))

    def _remember_grips(self, action: np.ndarray) -> None:
        """Keep the last entry of each arm's action, the state of its gripper."""
        self._grips = np.array(action, dtype=np.float64).reshape(self.scene.arms, -1)[:, -1]

    def _convert(self, relative: np.ndarray) -> np.ndarray:
        """Convert a relative action (7 * arms,) to the actions of this environment."""
        if self.actions == "absolute":
            return absolute_actions(self.robosuite_observations(), relative)
        return joint_goals(self.sim_env, relative) if self.actions == "joints" else relative

    def _controller_input(self, action: np.ndarray) -> np.ndarray:
        return from_six_dimensional(action) if self.actions == "absolute" else action

    @property
    def physics_dt(self) -> float:
        """The time step of the physics, s."""
        return float(self.sim_env.model_timestep)

    def advance(self, action: np.ndarray, steps: int) -> None:
        """Simulate `steps` steps of `physics_dt` with a goal (A,).

        Raises:
            EnvError: the environment has relative actions. Each call would add another motion.
        """
        if self.actions == "delta":
            raise EnvError(
                "actions=delta cannot be executed in parts of a control period; use "
                "actions=absolute or actions=joints (robot.driver.kwargs.actions)."
            )
        self._remember_grips(action)
        goal, sim = self._controller_input(action), self.sim_env.sim
        for i in range(steps):
            sim.step1()
            self.sim_env._pre_action(goal, policy_step=i == 0)
            sim.step2()

    def compute_reward(self) -> tuple[float, bool]:
        """Return the reward of the current scene, and whether the task is solved."""
        solved = self._is_solved()
        return self._task_progress(solved), solved

    def hold_action(self) -> np.ndarray:
        """Return the goal that keeps the arms at their current poses."""
        motions = np.zeros((self.scene.arms, 6))
        return self._convert(np.concatenate([motions, self._grips[:, None]], axis=1).ravel())

    def robosuite_observations(self) -> dict[str, np.ndarray]:
        """Return robosuite's observations of the current scene, name -> array."""
        self.sim_env.sim.forward()  # After a step, positions and orientations lag one time step.
        # Some observations are computed from the previous ones, so two updates are needed.
        self.sim_env._get_observations(force_update=True)
        observations = self.sim_env._get_observations(force_update=True)
        return {**observations, "object": observations["object-state"]}

    def _low_dim_observation(self) -> np.ndarray:
        if self._keys is not None:
            observed = self.robosuite_observations()
            return np.concatenate([observed[key] for key in self._keys]).astype(np.float32)
        observed = observation(self.scene, self.robosuite_observations(), OBSERVATION_VERSION)
        if self.actions != "joints":
            return observed
        return np.concatenate([joint_positions(self.sim_env).astype(np.float32), observed])

    def get_state(self) -> np.ndarray:
        return np.asarray(self.sim_env.sim.get_state().flatten(), dtype=np.float64)

    def _is_solved(self) -> bool:
        return bool(self.sim_env._check_success())


def controllers(actions: str) -> dict[str, Any]:
    """Return the controllers of a Panda for a type of actions, a key of `ACTION_BOUNDS`.

    robomimic's data sets have the operational-space controllers.
    """
    config: Any = load_composite_controller_config(robot="Panda")
    for name, part in config["body_parts"].items():
        if actions == "joints":
            joint_controller: Any = load_part_controller_config(default_controller="JOINT_POSITION")
            config["body_parts"][name] = joint_controller | {
                "input_type": "absolute", "kp": JOINT_STIFFNESS, "gripper": part["gripper"],
            }  # fmt: skip
        else:
            part["input_ref_frame"] = "world"
            part["input_type"] = "absolute" if actions == "absolute" else "delta"
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
