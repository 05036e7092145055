"""Push-T: push a T-shaped block onto a T-shaped goal with a circular agent.

The physics is gym-pusht's; the initial states, the score and the end of an episode are those of
Diffusion Policy (Chi et al. 2023, `pusht_keypoints_runner.py`), so that scores compare.
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

from ebt_policy.envs.perturbations import Kind
from ebt_policy.envs.push_t_geometry import observation

SIZE = 512.0  # side of the square workspace, px
SEEN = 96  # side of the frames that a policy sees, px: Diffusion Policy's
# The walls stop neither the agent nor, when it is squeezed, the block. The agent stays inside
# [0, SIZE]; its 15 px radius can carry the block, whose farthest corner is 142 px from its origin,
# about 160 px outside. The bounds leave room beyond that for the solver's overlaps.
OBSERVATION_LOW, OBSERVATION_HIGH = -SIZE / 2, SIZE * 3 / 2
RADIUS = 15.0  # of the agent, px
MARGIN = 60.0  # px, how near the edge a perturbation may move the block: it must stay movable
PERIOD = 10  # steps of physics in one of the environment
TRIES = 64  # directions tried until nothing overlaps


Observation = np.ndarray | dict[str, np.ndarray]


class PushTEnv(GymPushTEnv):
    """Push-T with keypoint observations and Diffusion Policy's seeded initial states.

    Observation: (20,) float32, px: the block's 9 keypoints (x, y each), then the agent (x, y). With
    `pixels`: {"obs": the agent (2,) float32, px; "image": the scene (96, 96, 3) uint8}.
    Action: (2,) float32, px in [0, 512]: where the agent should go, held for 0.1 s. Values outside
    are clipped.
    Reward: clip(coverage / 0.95, 0, 1), coverage being the covered fraction of the goal's area.
    Terminated: coverage > 0.95.
    Info: `coverage`, `is_success`, `state` (5,) float64: agent x, y, block x, y (px), block angle
    (rad, in [0, 2 pi)).

    Args:
        render_mode: None or "rgb_array".
        width, height: size of the rendered frames, px.
        pixels: observe the scene as an image.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}
    physics_dt = 0.01  # s

    perturbations: ClassVar[dict[str, Kind]] = {
        "agent": Kind("px", (50, 100, 200)),  # the agent is displaced
        "kick": Kind("px", (25, 50, 100)),  # the block is displaced
        "turn": Kind("degrees", (30, 60, 120)),  # the block is turned about its centre of mass
        "start": Kind("px", (25, 50, 100)),  # the block starts farther from the table's centre
        "action_noise": Kind("px", (5, 10, 20)),
        "delay": Kind("steps", (1, 2, 4)),
        "freeze": Kind("steps", (4, 8, 16)),
    }

    def __init__(
        self,
        render_mode: str | None = None,
        width: int = 256,
        height: int = 256,
        pixels: bool = False,
    ):
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f'render_mode must be None or "rgb_array", got {render_mode!r}')
        self._pixels = pixels
        super().__init__(
            render_mode=cast(str, render_mode),
            visualization_width=width,
            visualization_height=height,
        )
        self._goal: MultiPolygon | None = None  # its outline, the same in all episodes
        self._table: pygame.Surface | None = None  # what never moves
        self._screen = pygame.Surface((int(SIZE), int(SIZE)), depth=32)

    def _initialize_observation_space(self) -> None:
        low = spaces.Box(
            OBSERVATION_LOW, OBSERVATION_HIGH, shape=(2 if self._pixels else 20,), dtype=np.float32
        )
        image = spaces.Box(0, 255, shape=(SEEN, SEEN, 3), dtype=np.uint8)
        self.observation_space = spaces.Dict({"obs": low, "image": image}) if self._pixels else low

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode whose initial state depends on `seed` alone.

        Args:
            seed: 0 to 2**32 - 1; without it, one is drawn from `np_random`.
            options: {"state": (5,)} starts in exactly that state instead (layout as `info`'s).

        Raises:
            ValueError: a seed outside its range, an unknown option or an impossible state.
        """
        gymnasium.Env.reset(self, seed=seed)
        options = dict(options or {})
        given = options.pop("state", None)
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}; the only one is 'state'")
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        self._setup()
        self._last_action = None
        if given is None:
            self._set_state(seeded_state(seed))
        else:
            self._place(_checked_state(given))
        info = {"coverage": float(self._get_coverage()), "is_success": False}
        return self.get_obs(), info | self._get_info()

    def step(
        self, action: np.ndarray
    ) -> tuple[Observation, float, bool, Literal[False], dict[str, Any]]:
        """Move toward `action` (2,) for 0.1 s.

        Raises:
            ValueError: an action of another shape, or with a NaN or an infinity in it.
        """
        target = np.asarray(action, dtype=np.float64)
        if target.shape != (2,) or not np.isfinite(target).all():
            raise ValueError(f"a Push-T action is two finite numbers (x, y in px), got {action}")
        self.advance(target, PERIOD)
        reward, solved = self.judge()
        info = self._get_info() | {"coverage": self._covered, "is_success": solved}
        return self.get_obs(), reward, solved, False, info

    def advance(self, target: np.ndarray, steps: int) -> None:
        """Move toward `target` (2,), px, for so many steps of `physics_dt`: gym-pusht's control."""
        goal = np.clip(target, 0.0, SIZE)
        self._last_action = goal
        for _ in range(steps):
            pull = self.k_p * (goal - self.agent.position) - self.k_v * self.agent.velocity
            self.agent.velocity += pull * self.physics_dt
            self.space.step(self.physics_dt)

    def judge(self) -> tuple[float, bool]:
        """Reward of the scene as it is, and whether the task is solved."""
        self._covered = float(self._get_coverage())
        reward = np.clip(self._covered / self.success_threshold, 0.0, 1.0)
        return float(reward), self._covered > self.success_threshold

    def stay(self) -> np.ndarray:
        """The action (2,) that keeps the agent where it is."""
        return np.array(self.agent.position)

    def get_obs(self) -> Observation:
        """The current observation."""
        if self._pixels:
            agent = np.array(self.agent.position, dtype=np.float32)
            return {"obs": agent, "image": self._frame()}
        return np.asarray(observation(self._state()), dtype=np.float32)

    def _draw(self) -> pygame.Surface:
        # As gym-pusht does, but goal and walls once, and always in the same order: its order where
        # things touch depends on how they came there.
        screen, pencil = self._screen, DrawOptions(self._screen)
        if self._table is None:
            screen.fill("white")
            goal = self.get_goal_pose_body(self.goal_pose)
            for shape in self._block_shapes:
                corners = [to_pygame(goal.local_to_world(v), screen) for v in shape.get_vertices()]
                pygame.draw.polygon(screen, "LightGreen", corners)
            for wall in self.space.static_body.shapes:
                colour = SpaceDebugColor(*wall.color)
                pencil.draw_fat_segment(wall.a, wall.b, wall.radius, colour, colour)
            self._table = screen.copy()
        screen.blit(self._table, (0, 0))
        for shape in self._block_shapes:
            colour = SpaceDebugColor(*shape.color)
            corners = [self.block.local_to_world(v) for v in shape.get_vertices()]
            pencil.draw_polygon(corners, shape.radius, colour, colour)
        for shape in self.agent.shapes:
            colour = SpaceDebugColor(*shape.color)
            pencil.draw_circle(self.agent.position, 0.0, shape.radius, colour, colour)
        return screen

    def _frame(self) -> np.ndarray:
        """The scene as a policy sees it, (96, 96, 3) uint8.

        What gym-pusht's own resizing gives, without copying the whole scene first.
        """
        buffer: Any = self._draw().get_buffer()
        scene = np.frombuffer(buffer, dtype=np.uint8).reshape(int(SIZE), int(SIZE), 4)
        small = cv2.resize(scene, (SEEN, SEEN))
        return np.ascontiguousarray(small[..., 2::-1])  # blue, green, red, unused

    def observe(self, state: np.ndarray) -> Observation:
        """The observation of a state (5,); the episode is left there.

        A frame differs from the recorded one of a human demonstration by 0.07 of 255 on average, in
        single pixels along edges.
        """
        self._place(state.astype(np.float64))
        return self.get_obs()

    def perturb(
        self, kind: str, strength: float, rng: np.random.Generator
    ) -> tuple[Observation, dict[str, Any]]:
        """Disturb the scene; returns observation and info after it.

        Args:
            kind: "agent", "kick", "turn" or "start", see `perturbations`.
            strength: in its unit.
            rng: chooses the direction, again where something would leave the table. Where the
                block comes to lie on the agent, the agent makes way.

        Raises:
            ValueError: a kind that is not the environment's to do.
        """
        before = self._state()
        for _ in range(TRIES):
            state = before.copy()
            direction, side = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0])
            shift = strength * np.array([np.cos(direction), np.sin(direction)])
            if kind == "agent":
                state[:2] += shift
            elif kind == "kick":
                state[2:4] += shift
            elif kind == "start":
                away = state[2:4] - SIZE / 2
                away = strength * away / max(np.linalg.norm(away), 1.0)
                state[2:4] = np.clip(state[2:4] + away, MARGIN, SIZE - MARGIN)
            elif kind == "turn":
                heavy = self.block.center_of_gravity
                state[4] += side * np.deg2rad(strength)
                state[2:4] = self.block.local_to_world(heavy) - heavy.rotated(state[4])
            else:
                raise ValueError(f"Push-T cannot be perturbed by {kind!r}")
            if kind != "agent":
                self._make_way(state)
            if self._possible(state, before):
                self._place(state)
                break
        return self.get_obs(), self._get_info()

    def _make_way(self, state: np.ndarray) -> None:
        """Move the agent of `state` away from the block until they do not overlap, in place."""
        heavy = state[2:4] + np.array(self.block.center_of_gravity.rotated(float(state[4])))
        away = state[:2] - heavy
        away = away / np.linalg.norm(away) if away.any() else np.array([1.0, 0.0])
        while self._overlap(state):
            state[:2] += away

    def _possible(self, state: np.ndarray, before: np.ndarray) -> bool:
        """Whether what was displaced is on the table, and nothing overlaps."""
        for part, margin in ((slice(0, 2), RADIUS), (slice(2, 4), MARGIN)):
            now = state[part]
            if (now != before[part]).any() and (now.min() < margin or now.max() > SIZE - margin):
                return False
        return not self._overlap(state)

    def _overlap(self, state: np.ndarray) -> bool:
        """Whether the agent would touch the block."""
        point = Vec2d(*(state[:2] - state[2:4]).tolist()).rotated(-float(state[4]))
        here = self.block.local_to_world(point)  # the same place seen from the block as it is
        return any(shape.point_query(here).distance < RADIUS for shape in self._block_shapes)

    def _get_coverage(self) -> float:
        # gym-pusht goes through a set of shapes, whose order, and so the last digit, is random; it
        # also builds the goal's outline anew each time, a quarter of the time of a step.
        if self._goal is None:
            self._goal = self._outline(self.get_goal_pose_body(self.goal_pose))
        covered = self._goal.intersection(self._outline(self.block))
        return float(covered.area / self._goal.area)

    def _outline(self, body: pymunk.Body) -> MultiPolygon:
        """The T of a body as a polygon in workspace coordinates."""
        return pymunk_to_shapely(body, self._block_shapes)

    def draw_plan(self, frame: np.ndarray, plan: np.ndarray) -> np.ndarray:
        """Draw planned agent positions over a rendered frame, in place.

        Args:
            frame: (H, W, 3) uint8.
            plan: (n, 2) actions, px of the workspace, soonest first: they fade from red to yellow.
        """
        height, width = frame.shape[:2]
        for i, (x, y) in enumerate(plan):
            centre = (round(float(x) / SIZE * width), round(float(y) / SIZE * height))
            colour = (230, int(200 * i / max(1, len(plan) - 1)), 40)
            cv2.circle(frame, centre, max(2, width // 100), colour, -1, cv2.LINE_AA)
        return frame

    def _state(self) -> np.ndarray:
        angle = self.block.angle % (2 * np.pi)
        return np.array([*self.agent.position, *self.block.position, angle])

    def _get_info(self) -> dict[str, Any]:
        return {"state": self._state()}

    def _place(self, state: np.ndarray) -> None:
        # Angle before position: turning moves the block's origin about its centre of mass.
        self.agent.position = Vec2d(*state[:2].tolist())
        self.block.angle = float(state[4])
        self.block.position = Vec2d(*state[2:4].tolist())
        self.space.reindex_shapes_for_body(self.agent)
        self.space.reindex_shapes_for_body(self.block)


def seeded_state(seed: int) -> np.ndarray:
    """The values from which Diffusion Policy starts episode `seed`, (5,) float64.

    Source: `PushTEnv.reset` of github.com/real-stanford/diffusion_policy. The block is then placed
    in the legacy order, position before angle, so that its origin ends up elsewhere: the turn is
    about the centre of mass.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"a Push-T seed lies between 0 and 2**32 - 1, got {seed}")
    rs = np.random.RandomState(seed)
    agent_and_block = [rs.randint(50, 450), rs.randint(50, 450)]
    agent_and_block += [rs.randint(100, 400), rs.randint(100, 400)]
    return np.array([*agent_and_block, rs.randn() * 2 * np.pi - np.pi])


def _checked_state(given: Any) -> np.ndarray:
    state = np.asarray(given, dtype=np.float64)
    if state.shape != (5,) or not np.isfinite(state).all():
        raise ValueError(f"options['state'] must be five finite numbers, got {given}")
    if (state[:2] < 0).any() or (state[:2] > SIZE).any():
        raise ValueError(f"the agent must start inside [0, {SIZE:g}] px, got {state[:2]}")
    if (state[2:4] < 0).any() or (state[2:4] > SIZE).any():
        raise ValueError(f"the block must start inside [0, {SIZE:g}] px, got {state[2:4]}")
    return state
