"""Base class of manipulation tasks in MuJoCo: observations, cameras, reward, perturbations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

from ebt_policy.envs.errors import EnvError
from ebt_policy.envs.perturbations import PerturbationKind
from ebt_policy.envs.rendering import require_rendering

MAX_PLACEMENT_ATTEMPTS = 16  # number of random directions tried to place the object freely
EARLY = (10, 30)  # steps of random events: a cube can be lifted in 37 steps
PERTURBATIONS = {
    "delay": PerturbationKind("steps", (1, 2, 4)),
    "freeze": PerturbationKind("steps", (4, 8, 16), event_steps=EARLY),
}
GRASP_PERTURBATIONS = {  # only for tasks in which the robot grasps an object
    # The object is taken out of the gripper and placed elsewhere.
    "object": PerturbationKind("cm", (5, 8, 12), held=True),
    # The gripper is pushed away.
    "gripper": PerturbationKind("cm", (5, 10, 15), event_steps=EARLY),
}
ExpertFn = Callable[[], np.ndarray]  # returns the next action (A,), from the simulator's own state


class ManipulationEnv(gymnasium.Env):
    """A task of a robot arm or hand in MuJoCo; the initial state depends on the seed alone.

    Observation: (Do,) float32, in the order of `layout`. With `cameras`, a dictionary: "obs" holds
    the proprioception (the first `proprioception` values of the layout), and each camera has a
    (image_size, image_size, 3) uint8 frame.
    Action: (A,) float32 inside `action_space`; values outside are clipped.
    Reward: 1 when the task is solved; before that the task progress in [0, 1) if the task defines
    it, else 0. Terminated: the task is solved.
    Info: `is_success`, and `state` (S,) float64, which `reset(options={"state": ...})` restores.

    Args:
        action_space: action space of the robot.
        layout: name -> width of each part of an observation, in order.
        all_cameras: names of all cameras of the scene.
        grasps: whether the robot grasps an object, so that `GRASP_PERTURBATIONS` are possible.
        cameras: names of the cameras in the observation.
        image_size: side length of the frames in the observation, px.
        render_mode: "rgb_array" to render frames of `render_camera`, or None.

    Raises:
        EnvError: a camera or the render mode is unknown.
        RenderingError: frames are requested and no OpenGL backend works.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}
    render_camera: str
    proprioception: int
    render_size = 256  # px
    # If True, observations repeat the last frames. Rollouts set it for steps that no policy sees.
    skip_rendering = False

    def __init__(
        self,
        action_space: spaces.Box,
        layout: dict[str, int],
        all_cameras: Sequence[str],
        *,
        grasps: bool = False,
        cameras: Sequence[str] | None = None,
        image_size: int = 84,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise EnvError(f'render_mode must be None or "rgb_array", got {render_mode!r}.')
        cameras = cameras or ()
        if unknown := [name for name in cameras if name not in all_cameras]:
            raise EnvError(
                f"this environment has no camera {unknown[0]!r}; "
                f"task.cameras may name {', '.join(all_cameras)}."
            )
        if cameras or render_mode:
            require_rendering()
        self.perturbations = PERTURBATIONS | (GRASP_PERTURBATIONS if grasps else {})
        self.render_mode = render_mode
        self.cameras, self.image_size = tuple(cameras), image_size
        self._frames: dict[str, np.ndarray] = {}
        self.layout = layout
        self.action_space = action_space
        width = self.proprioception if cameras else sum(layout.values())
        low_dim = spaces.Box(-np.inf, np.inf, (width,), np.float32)
        frame = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = (
            spaces.Dict({"obs": low_dim, **{name: frame for name in self.cameras}})
            if cameras
            else low_dim
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode whose initial state depends on `seed` alone.

        Args:
            seed: seed of the initial state; None draws one from `np_random`.
            options: {"state": (S,)} starts in exactly this state instead, a state from `info`.

        Raises:
            ValueError: an option is unknown, or the state has another length or is not finite.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        state = options.pop("state", None)
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}; the only one is 'state'")
        self._frames = {}
        self._reset_scene(int(self.np_random.integers(2**31)) if seed is None else seed)
        if state is not None:
            shape, state = self.get_state().shape, np.asarray(state, dtype=np.float64)
            if state.shape != shape or not np.isfinite(state).all():
                raise ValueError(
                    f"options['state'] must be {shape[0]} finite numbers, got shape {state.shape}"
                )
            self.restore(state)
        return self.observe(), self._info(False)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, Literal[False], dict[str, Any]]:
        """Apply `action` (A,) for one control period.

        Raises:
            ValueError: the action has another shape or is not finite.
        """
        command = np.asarray(action, dtype=np.float64)
        if command.shape != self.action_space.shape or not np.isfinite(command).all():
            raise ValueError(
                f"an action must be {self.action_space.shape[0]} finite numbers, got {action}"  # type: ignore[index]
            )
        assert isinstance(self.action_space, spaces.Box)
        self._apply_action(np.clip(command, self.action_space.low, self.action_space.high))
        solved = self._is_solved()
        return self.observe(), self._task_progress(solved), solved, False, self._info(solved)

    def get_obs(self) -> Any:
        """Return the observation of the current scene."""
        return self.observe()

    def observe(self, state: np.ndarray | None = None) -> Any:
        """Return the observation of the scene, after restoring a state (S,) if one is passed."""
        if state is not None:
            self.restore(state)
        low_dim = np.asarray(self._low_dim_observation(), dtype=np.float32)
        if not self.cameras:
            return low_dim
        low_dim = low_dim[: self.proprioception]
        if not (self.skip_rendering and self._frames):
            self._frames = {name: self.frame(name, self.image_size) for name in self.cameras}
        return {"obs": low_dim} | self._frames

    def render(self) -> Any:
        """Return a frame (256, 256, 3) uint8 of the current scene; None without a render mode."""
        return self.frame(self.render_camera, self.render_size) if self.render_mode else None

    def perturb(
        self, kind: str, strength: float, rng: np.random.Generator
    ) -> tuple[Any, dict[str, Any]]:
        """Disturb the scene, and return the observation and info afterwards.

        Args:
            kind: "object" (placed elsewhere) or "gripper" (pushed away).
            strength: horizontal distance, cm.
            rng: generator that chooses the direction.

        Raises:
            EnvError: the environment does not implement this kind.
        """
        if kind not in ("object", "gripper") or kind not in self.perturbations:
            raise EnvError(f"{type(self).__name__} cannot be perturbed by {kind!r}.")
        start = self._object_position() if kind == "object" else np.zeros(2)
        for _ in range(MAX_PLACEMENT_ATTEMPTS):
            angle = rng.uniform(0, 2 * np.pi)
            shift = strength / 100 * np.array([np.cos(angle), np.sin(angle)])
            if kind == "gripper":
                self._push_gripper(np.append(shift, rng.uniform(0, 0.5) * strength / 100))
                break
            if self._place_object(start + shift):
                break
        return self.observe(), self._info(self._is_solved())

    def holding(self) -> bool:
        """Return whether the robot holds the object."""
        return False

    def expert(self, rng: np.random.Generator) -> ExpertFn:
        """Return a scripted expert; call it before each step of an episode to get the action.

        Args:
            rng: generator that draws the style and the noise of the expert.

        Raises:
            EnvError: the task has no scripted expert.
        """
        raise EnvError(
            f"{type(self).__name__} has no scripted expert; use human demonstrations, or record "
            "a policy with checkpoint=RUN."
        )

    def _info(self, solved: bool) -> dict[str, Any]:
        return {"is_success": solved, "state": self.get_state()}

    def _task_progress(self, is_solved: bool) -> float:
        """Return the progress of the task, in [0, 1]."""
        return float(is_solved)

    # -- implemented by each simulator ---------------------------------------------------------

    @abstractmethod
    def frame(self, camera: str, size: int) -> np.ndarray:
        """Return the upright frame of a camera, (size, size, 3) uint8."""

    @abstractmethod
    def _reset_scene(self, seed: int) -> None:
        """Reset the scene to the initial state of `seed`."""

    @abstractmethod
    def restore(self, state: np.ndarray) -> None:
        """Restore a state (S,) of the scene."""

    @abstractmethod
    def _apply_action(self, action: np.ndarray) -> None:
        """Simulate one control period with `action` (A,), which is already clipped."""

    def _push_gripper(self, shift: np.ndarray) -> None:
        """Push the gripper by `shift` (3,), m."""
        raise NotImplementedError

    def _object_position(self) -> np.ndarray:
        """Return the position of the object: x and y (2,), m."""
        raise NotImplementedError

    def _place_object(self, position: np.ndarray) -> bool:
        """Place the object at x and y (2,), m, and return whether the gripper is clear of it."""
        raise NotImplementedError

    @abstractmethod
    def _low_dim_observation(self) -> np.ndarray:
        """Return the low-dimensional observation (Do,)."""

    @abstractmethod
    def get_state(self) -> np.ndarray:
        """Return the state (S,) float64 of the scene, for `restore`."""

    @abstractmethod
    def _is_solved(self) -> bool:
        """Return whether the task is solved."""
