"""Push-T: a circular agent pushes a T-shaped block onto a T-shaped goal.

The physics comes from gym-pusht. Initial states, score and termination are the same as in Diffusion
Policy (Chi et al. 2023, `pusht_keypoints_runner.py`), so scores are comparable.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar, Literal, cast

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import cv2
import gymnasium
import numpy as np
import pygame
import pymunk
from gym_pusht.envs.pusht import PushTEnv as GymPushTEnv
from gym_pusht.envs.pusht import pymunk_to_shapely
from gym_pusht.envs.pymunk_override import DrawOptions, to_pygame
from gymnasium import spaces
from pymunk import Vec2d
from pymunk.space_debug_draw_options import SpaceDebugColor
from shapely import MultiPolygon

from ebt_policy.envs.errors import EnvError
from ebt_policy.envs.perturbations import PerturbationKind
from ebt_policy.envs.push_t_geometry import (
    WORKSPACE_SIZE,
    Displacement,
    observation,
    seeded_state,
    validate_state,
)

IMAGE_SIZE = 96  # px, side length of the frames that a policy sees, as in Diffusion Policy
# The walls do not stop the agent, and a squeezed block can pass them. The agent's centre stays
# inside [0, WORKSPACE_SIZE]. Its radius is 15 px and the T is 142 px long, so the block can be
# about 160 px outside. The bounds leave a margin beyond that for overlaps in the solver.
OBSERVATION_LOW, OBSERVATION_HIGH = -WORKSPACE_SIZE / 2, WORKSPACE_SIZE * 3 / 2
AGENT_RADIUS = 15.0  # px
EDGE_MARGIN = 60.0  # px, smallest distance of a perturbed block from the edge; it must stay movable
PHYSICS_STEPS_PER_ACTION = 10
MAX_PLACEMENT_ATTEMPTS = 64  # number of random displacements tried to find a valid one

Observation = np.ndarray | dict[str, np.ndarray]


class PushTEnv(GymPushTEnv):
    """Push-T with keypoint observations and Diffusion Policy's seeded initial states.

    Observation: (20,) float32, px: the block's 9 keypoints (x, y each), then the agent (x, y). With
    `pixels`, a dictionary: "obs" is the agent (2,) float32, px, and "image" is the scene
    (96, 96, 3) uint8.
    Action: (2,) float32, px in [0, 512]: target position of the agent for 0.1 s. Values outside are
    clipped.
    Reward: clip(coverage / 0.95, 0, 1); coverage is the covered fraction of the goal's area.
    Terminated: coverage > 0.95.
    Info: `coverage`, `is_success`, and `state` (5,) float64: agent x, y, block x, y (px), block
    angle (rad, in [0, 2 pi)).

    Args:
        render_mode: None or "rgb_array".
        width, height: size of the rendered frames, px.
        pixels: whether the observation is an image instead of keypoints.

    Raises:
        EnvError: the render mode is unknown.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}
    physics_dt = 0.01  # s

    perturbations: ClassVar[dict[str, PerturbationKind]] = {
        "agent": PerturbationKind("px", (50, 100, 200)),  # displaces the agent
        "kick": PerturbationKind("px", (25, 50, 100)),  # displaces the block
        "turn": PerturbationKind("degrees", (30, 60, 120)),  # turns the block in place
        "start": PerturbationKind("px", (25, 50, 100)),  # starts the block farther from the centre
        "action_noise": PerturbationKind("px", (5, 10, 20)),
        "delay": PerturbationKind("steps", (1, 2, 4)),
        "freeze": PerturbationKind("steps", (4, 8, 16)),
    }

    def __init__(
        self,
        render_mode: str | None = None,
        width: int = 256,
        height: int = 256,
        pixels: bool = False,
    ):
        if render_mode not in (None, "rgb_array"):
            raise EnvError(f'render_mode must be None or "rgb_array", got {render_mode!r}.')
        self._pixels = pixels
        super().__init__(
            render_mode=cast(str, render_mode),
            visualization_width=width,
            visualization_height=height,
        )
        self._goal_polygon: MultiPolygon | None = None  # is the same in all episodes
        self._background: pygame.Surface | None = None  # shows goal and walls
        self._screen = pygame.Surface((int(WORKSPACE_SIZE), int(WORKSPACE_SIZE)), depth=32)

    def _initialize_observation_space(self) -> None:
        low = spaces.Box(
            OBSERVATION_LOW, OBSERVATION_HIGH, shape=(2 if self._pixels else 20,), dtype=np.float32
        )
        image = spaces.Box(0, 255, shape=(IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        self.observation_space = spaces.Dict({"obs": low, "image": image}) if self._pixels else low

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode whose initial state depends on `seed` alone.

        Args:
            seed: 0 to 2**32 - 1; None draws one from `np_random`.
            options: {"state": (5,)} starts in exactly this state instead, a state from `info`.

        Raises:
            ValueError: the seed is outside its range, an option is unknown or the state is invalid.
        """
        gymnasium.Env.reset(self, seed=seed)
        options = dict(options or {})
        state = options.pop("state", None)
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}; the only one is 'state'")
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        self._setup()
        self._last_action = None
        if state is None:
            self._set_state(seeded_state(seed))
        else:
            self._restore_state(validate_state(state))
        info = {"coverage": float(self._get_coverage()), "is_success": False}
        return self.get_obs(), info | self._get_info()

    def step(
        self, action: np.ndarray
    ) -> tuple[Observation, float, bool, Literal[False], dict[str, Any]]:
        """Move the agent toward `action` (2,), px, for 0.1 s.

        Raises:
            ValueError: the action has another shape or is not finite.
        """
        target = np.asarray(action, dtype=np.float64)
        if target.shape != (2,) or not np.isfinite(target).all():
            raise ValueError(f"a Push-T action must be two finite numbers, x and y, got {action}")
        self.advance(target, PHYSICS_STEPS_PER_ACTION)
        reward, is_solved = self.compute_reward()
        info = self._get_info() | {"coverage": self._coverage, "is_success": is_solved}
        return self.get_obs(), reward, is_solved, False, info

    def advance(self, target: np.ndarray, steps: int) -> None:
        """Move the agent toward `target` (2,), px, for `steps` steps of `physics_dt`.

        The controller is the same as in gym-pusht.
        """
        goal = np.clip(target, 0.0, WORKSPACE_SIZE)
        self._last_action = goal
        for _ in range(steps):
            acceleration = self.k_p * (goal - self.agent.position) - self.k_v * self.agent.velocity
            self.agent.velocity += acceleration * self.physics_dt
            self.space.step(self.physics_dt)

    def compute_reward(self) -> tuple[float, bool]:
        """Return the reward of the current scene, and whether the task is solved."""
        self._coverage = float(self._get_coverage())
        reward = np.clip(self._coverage / self.success_threshold, 0.0, 1.0)
        return float(reward), self._coverage > self.success_threshold

    def hold_action(self) -> np.ndarray:
        """Return the action (2,) that keeps the agent at its current position."""
        return np.array(self.agent.position)

    def get_obs(self) -> Observation:
        """Return the observation of the current scene."""
        if self._pixels:
            agent = np.array(self.agent.position, dtype=np.float32)
            return {"obs": agent, "image": self._frame()}
        return np.asarray(observation(self.get_state()), dtype=np.float32)

    def _draw(self) -> pygame.Surface:
        """Draw the scene in the style of gym-pusht.

        Goal and walls are drawn once. Shapes are drawn in a fixed order, because the order in
        gym-pusht depends on the history of the scene.
        """
        screen, draw_options = self._screen, DrawOptions(self._screen)
        if self._background is None:
            screen.fill("white")
            goal = self.get_goal_pose_body(self.goal_pose)
            for shape in self._block_shapes:
                corners = [to_pygame(goal.local_to_world(v), screen) for v in shape.get_vertices()]
                pygame.draw.polygon(screen, "LightGreen", corners)
            for wall in self.space.static_body.shapes:
                colour = SpaceDebugColor(*wall.color)
                draw_options.draw_fat_segment(wall.a, wall.b, wall.radius, colour, colour)
            self._background = screen.copy()
        screen.blit(self._background, (0, 0))
        for shape in self._block_shapes:
            colour = SpaceDebugColor(*shape.color)
            corners = [self.block.local_to_world(v) for v in shape.get_vertices()]
            draw_options.draw_polygon(corners, shape.radius, colour, colour)
        for shape in self.agent.shapes:
            colour = SpaceDebugColor(*shape.color)
            draw_options.draw_circle(self.agent.position, 0.0, shape.radius, colour, colour)
        return screen

    def _frame(self) -> np.ndarray:
        """Return the scene as a policy sees it, (96, 96, 3) uint8.

        The result is the same as gym-pusht's resized image, but the full scene is not copied.
        """
        buffer: Any = self._draw().get_buffer()
        size = int(WORKSPACE_SIZE)
        scene = np.frombuffer(buffer, dtype=np.uint8).reshape(size, size, 4)
        image = cv2.resize(scene, (IMAGE_SIZE, IMAGE_SIZE))
        return np.ascontiguousarray(image[..., 2::-1])  # The buffer has blue, green, red, unused.

    def observe(self, state: np.ndarray) -> Observation:
        """Restore a state (5,) and return its observation.

        A frame of a human demonstration's state differs from the recorded frame by 0.07 of 255 on
        average. The differences are in single pixels along edges.
        """
        self._restore_state(state.astype(np.float64))
        return self.get_obs()

    def perturb(
        self, kind: str, strength: float, rng: np.random.Generator
    ) -> tuple[Observation, dict[str, Any]]:
        """Disturb the scene, and return the observation and info afterwards.

        A random displacement is drawn until nothing leaves the table and nothing overlaps, at most
        `MAX_PLACEMENT_ATTEMPTS` times. The agent is moved away from a displaced block that would
        lie on it.

        Args:
            kind: "agent", "kick", "turn" or "start", see `perturbations`.
            strength: strength in the unit of the kind.
            rng: generator of the displacement.

        Raises:
            EnvError: the environment does not implement this kind.
        """
        displace = {
            "agent": self._shift_agent,
            "kick": self._shift_block,
            "turn": self._turn_block,
            "start": self._move_block_outward,
        }.get(kind)
        if displace is None:
            raise EnvError(f"Push-T cannot be perturbed by {kind!r}.")
        before = self.get_state()
        for _ in range(MAX_PLACEMENT_ATTEMPTS):
            state = before.copy()
            direction, side = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0])
            displace(state, Displacement(strength, direction, side))
            if kind != "agent":
                self._move_agent_clear(state)
            if self._is_valid_displacement(state, before):
                self._restore_state(state)
                break
        return self.get_obs(), self._get_info()

    def _shift_agent(self, state: np.ndarray, displacement: Displacement) -> None:
        state[:2] += displacement.shift

    def _shift_block(self, state: np.ndarray, displacement: Displacement) -> None:
        state[2:4] += displacement.shift

    def _turn_block(self, state: np.ndarray, displacement: Displacement) -> None:
        centre = self.block.center_of_gravity
        state[4] += displacement.side * np.deg2rad(displacement.strength)
        state[2:4] = self.block.local_to_world(centre) - centre.rotated(state[4])

    def _move_block_outward(self, state: np.ndarray, displacement: Displacement) -> None:
        outward = state[2:4] - WORKSPACE_SIZE / 2
        outward = displacement.strength * outward / max(np.linalg.norm(outward), 1.0)
        state[2:4] = np.clip(state[2:4] + outward, EDGE_MARGIN, WORKSPACE_SIZE - EDGE_MARGIN)

    def _move_agent_clear(self, state: np.ndarray) -> None:
        """Move the agent in `state` away from the block, in place, until they do not overlap."""
        centre = state[2:4] + np.array(self.block.center_of_gravity.rotated(float(state[4])))
        direction = state[:2] - centre
        direction = (
            direction / np.linalg.norm(direction) if direction.any() else np.array([1.0, 0.0])
        )
        while self._agent_overlaps_block(state):
            state[:2] += direction

    def _is_valid_displacement(self, state: np.ndarray, before: np.ndarray) -> bool:
        """Return whether all displaced bodies are on the table and nothing overlaps."""
        for coordinates, margin in ((slice(0, 2), AGENT_RADIUS), (slice(2, 4), EDGE_MARGIN)):
            position = state[coordinates]
            is_outside = position.min() < margin or position.max() > WORKSPACE_SIZE - margin
            if is_outside and (position != before[coordinates]).any():
                return False
        return not self._agent_overlaps_block(state)

    def _agent_overlaps_block(self, state: np.ndarray) -> bool:
        """Return whether the agent touches the block in `state`."""
        point = Vec2d(*(state[:2] - state[2:4]).tolist()).rotated(-float(state[4]))
        # The block itself is not moved; the agent's position is expressed relative to it.
        query = self.block.local_to_world(point)
        return any(shape.point_query(query).distance < AGENT_RADIUS for shape in self._block_shapes)

    def _get_coverage(self) -> float:
        # gym-pusht iterates over a set of shapes, so the last digit of its coverage is random. It
        # also builds the goal's polygon in every step, which takes a quarter of a step's time.
        if self._goal_polygon is None:
            self._goal_polygon = self._block_polygon(self.get_goal_pose_body(self.goal_pose))
        intersection = self._goal_polygon.intersection(self._block_polygon(self.block))
        return float(intersection.area / self._goal_polygon.area)

    def _block_polygon(self, body: pymunk.Body) -> MultiPolygon:
        """Return the T at the pose of `body` as a polygon in workspace coordinates."""
        return pymunk_to_shapely(body, self._block_shapes)

    def draw_plan(self, frame: np.ndarray, plan: np.ndarray) -> np.ndarray:
        """Draw planned agent positions on a rendered frame, in place, and return the frame.

        Args:
            frame: (H, W, 3) uint8.
            plan: (n, 2) actions, px of the workspace, the next one first. The colour changes from
                red to yellow along the plan.
        """
        height, width = frame.shape[:2]
        for i, (x, y) in enumerate(plan):
            centre = (
                round(float(x) / WORKSPACE_SIZE * width),
                round(float(y) / WORKSPACE_SIZE * height),
            )
            colour = (230, int(200 * i / max(1, len(plan) - 1)), 40)
            cv2.circle(frame, centre, max(2, width // 100), colour, -1, cv2.LINE_AA)
        return frame

    def get_state(self) -> np.ndarray:
        """Return agent x, y, block x, y (px) and block angle (rad), (5,) float64."""
        angle = self.block.angle % (2 * np.pi)
        return np.array([*self.agent.position, *self.block.position, angle])

    def _get_info(self) -> dict[str, Any]:
        return {"state": self.get_state()}

    def _restore_state(self, state: np.ndarray) -> None:
        # Set the angle before the position, because pymunk turns the block about its centre of mass
        # and so moves its origin.
        self.agent.position = Vec2d(*state[:2].tolist())
        self.block.angle = float(state[4])
        self.block.position = Vec2d(*state[2:4].tolist())
        self.space.reindex_shapes_for_body(self.agent)
        self.space.reindex_shapes_for_body(self.block)
