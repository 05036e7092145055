"""What the MuJoCo manipulation tasks share: observations with and without cameras, score, end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

from ebt_policy.envs.perturbations import Kind
from ebt_policy.envs.rendering import require_rendering

TRIES = 16  # directions tried until what is moved lies free
PERTURBATIONS = {"delay": Kind("steps", (1, 2, 4)), "freeze": Kind("steps", (4, 8, 16))}
GRASPING = {  # perturbations of robots that hold something
    "object": Kind("cm", (5, 8, 12), held=True),  # taken out of the gripper and laid down elsewhere
    "gripper": Kind("cm", (5, 10, 15)),  # pushed away
}
Expert = Callable[[], np.ndarray]  # the action (A,) to take now, from the simulator's own state


class ManipulationEnv(gymnasium.Env):
    """A task of a robot arm or hand in MuJoCo; an episode depends on its seed alone.

    Observation: (Do,) float32, in the order of `layout`; with `cameras` a dictionary of what the
    robot feels of itself, the first `proprioception` numbers of that, as "obs", and a
    (size, size, 3) uint8 frame a camera.
    Action: (A,) float32 inside `action_space`; values outside are clipped.
    Reward: 1 when the task is solved, before that 0, or how much of it is done where that can be
    said. Terminated: it is solved.
    Info: `is_success`, `state` (S,) float64, all that `reset(options={"state": ...})` needs.

    Args:
        action_space: of the robot.
        layout: name -> width of each part of an observation.
        all_cameras: names of the scene's cameras.
        grasps: whether it is about an object that can be held, taken away and laid down.
        cameras: names of cameras that the observation shows.
        image_size: of their frames, px.
        render_mode: None or "rgb_array", frames of `render_camera`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}
    render_camera: str
    proprioception: int
    render_size = 256  # px
    blind = False  # True: no frames are drawn, the last ones stand in; set while nobody looks

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
            raise ValueError(f'render_mode must be None or "rgb_array", got {render_mode!r}')
        cameras = cameras or ()
        if unknown := [name for name in cameras if name not in all_cameras]:
            raise ValueError(
                f"this environment has no camera {unknown[0]!r}; it has {', '.join(all_cameras)}"
            )
        if cameras or render_mode:
            require_rendering()
        self.perturbations = PERTURBATIONS | (GRASPING if grasps else {})
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
            seed: without it, one is drawn from `np_random`.
            options: {"state": (S,)} starts in exactly that state instead (`info`'s).

        Raises:
            ValueError: an unknown option or a state of another length.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        state = options.pop("state", None)
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}; the only one is 'state'")
        self._frames = {}
        self._start(int(self.np_random.integers(2**31)) if seed is None else seed)
        if state is not None:
            wanted, given = self._state().shape, np.asarray(state, dtype=np.float64)
            if given.shape != wanted or not np.isfinite(given).all():
                raise ValueError(
                    f"options['state'] must be {wanted[0]} finite numbers, got shape {given.shape}"
                )
            self.restore(given)
        return self.observe(), self._info(False)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, Literal[False], dict[str, Any]]:
        """Act for one period of control.

        Raises:
            ValueError: an action of another shape, or with a NaN or an infinity in it.
        """
        given = np.asarray(action, dtype=np.float64)
        if given.shape != self.action_space.shape or not np.isfinite(given).all():
            raise ValueError(
                f"an action is {self.action_space.shape[0]} finite numbers, got {action}"  # type: ignore[index]
            )
        assert isinstance(self.action_space, spaces.Box)
        self._act(np.clip(given, self.action_space.low, self.action_space.high))
        solved = self._solved()
        return self.observe(), self._score(solved), solved, False, self._info(solved)

    def get_obs(self) -> Any:
        """The observation of the scene as it is."""
        return self.observe()

    def observe(self, state: np.ndarray | None = None) -> Any:
        """The observation of a state (S,), in which the scene is left; by default as it is."""
        if state is not None:
            self.restore(state)
        low_dim = np.asarray(self._low_dim(), dtype=np.float32)
        if not self.cameras:
            return low_dim
        low_dim = low_dim[: self.proprioception]
        if not (self.blind and self._frames):
            self._frames = {name: self.frame(name, self.image_size) for name in self.cameras}
        return {"obs": low_dim} | self._frames

    def render(self) -> Any:
        """A frame (256, 256, 3) uint8 of the scene as it is, None without a render mode."""
        return self.frame(self.render_camera, self.render_size) if self.render_mode else None

    def perturb(
        self, kind: str, strength: float, rng: np.random.Generator
    ) -> tuple[Any, dict[str, Any]]:
        """Disturb the scene; returns observation and info after it.

        Args:
            kind: "object", laid down elsewhere, or "gripper", pushed away.
            strength: by how much, cm.
            rng: chooses the direction.

        Raises:
            ValueError: a kind that is not the environment's to do.
        """
        if kind not in ("object", "gripper") or kind not in self.perturbations:
            raise ValueError(f"{type(self).__name__} cannot be perturbed by {kind!r}")
        start = self._place() if kind == "object" else np.zeros(2)
        for _ in range(TRIES):
            angle = rng.uniform(0, 2 * np.pi)
            shift = strength / 100 * np.array([np.cos(angle), np.sin(angle)])
            if kind == "gripper":
                self._push(np.append(shift, rng.uniform(0, 0.5) * strength / 100))
                break
            if self._lay(start + shift):
                break
        return self.observe(), self._info(self._solved())

    def holding(self) -> bool:
        """Whether the robot holds the object."""
        return False

    def expert(self, rng: np.random.Generator) -> Expert:
        """Someone who knows how: called before each step of an episode, gives its action.

        Raises:
            ValueError: nobody does.
        """
        raise ValueError(f"there is no scripted expert for {type(self).__name__}")

    def _info(self, solved: bool) -> dict[str, Any]:
        return {"is_success": solved, "state": self._state()}

    def _score(self, solved: bool) -> float:
        """How much of the task is done, in [0, 1]."""
        return float(solved)

    # -- of each simulator --------------------------------------------------------------------

    @abstractmethod
    def frame(self, camera: str, size: int) -> np.ndarray:
        """What a camera sees, (size, size, 3) uint8, upright."""

    @abstractmethod
    def _start(self, seed: int) -> None:
        """Bring the scene into the initial state of `seed`."""

    @abstractmethod
    def restore(self, state: np.ndarray) -> None:
        """Bring the scene into a state (S,)."""

    @abstractmethod
    def _act(self, action: np.ndarray) -> None:
        """One period of control."""

    def _push(self, shift: np.ndarray) -> None:
        """Move the gripper by (3,), m, as by hand."""
        raise NotImplementedError

    def _place(self) -> np.ndarray:
        """Where the object is, x and y (2,), m."""
        raise NotImplementedError

    def _lay(self, place: np.ndarray) -> bool:
        """Lay the object down at rest at x and y (2,), m; whether the gripper is clear of it."""
        raise NotImplementedError

    @abstractmethod
    def _low_dim(self) -> np.ndarray:
        """The observation (Do,)."""

    @abstractmethod
    def _state(self) -> np.ndarray:
        """The state (S,) float64."""

    @abstractmethod
    def _solved(self) -> bool:
        """Whether the task is solved."""
