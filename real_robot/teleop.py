"""A person's hand on a simulated robot: mouse, keyboard or gamepad in a window, or a policy's.

A hand is to the control loop what a planner is: it has the action of each tick. So what a person
does is kept within the same limits and recorded in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.drivers.base import DriverError
from ebt_policy.real_robot.inference_worker import Background
from ebt_policy.real_robot.planner import ActionSource
from ebt_policy.real_robot.safety import Motion

DEVICES = ("mouse", "keyboard", "gamepad")
SIDE = 512  # px of the window
SPEED = 300.0  # px/s of keyboard and gamepad
DEAD = 0.1  # of a gamepad's axis
HELP = "mouse, arrows or stick move; Backspace drops the episode, Enter keeps it, Esc quits"


class TeleopSource(ActionSource):
    """A person in front of a window that shows the scene, in the plane of a two-number action.

    Args:
        device: one of `DEVICES`.
        frame: draws the scene (H, W, 3).
        low, high: (2,) what the window's edges are, in units of the action.
        dt: seconds from tick to tick.
        background: unused, idle.

    Attributes:
        kept: None while the person goes on, then whether the episode is to be kept.
        quits: whether the window was closed.

    Raises:
        ConfigError: an unknown device, or there is no such device or no screen.
    """

    def __init__(
        self,
        device: str,
        frame: Callable[[], np.ndarray],
        low: np.ndarray,
        high: np.ndarray,
        dt: float,
        background: Background,
    ) -> None:
        import pygame

        if device not in DEVICES:
            raise ConfigError(f"input must be one of {', '.join(DEVICES)}, got {device}.")
        super().__init__(dt, background)
        self._pygame: Any = pygame
        self._device, self._frame, self._low, self._high = device, frame, low, high
        self.quits = False
        try:
            pygame.display.init()
            self._window = pygame.display.set_mode((SIDE, SIDE))
        except pygame.error as error:
            raise ConfigError(
                f"there is no screen for a window ({error}); input=policy needs none."
            ) from error
        pygame.display.set_caption(HELP)
        self._stick: Any = None
        if device == "gamepad":
            pygame.joystick.init()
            if not pygame.joystick.get_count():
                raise ConfigError("no gamepad is plugged in; use input=mouse or input=keyboard.")
            self._stick = pygame.joystick.Joystick(0)
            self._stick.init()
        self.begin()

    def warm_up(self, values: dict[str, np.ndarray], position: np.ndarray) -> None:
        self._show()

    def begin(self) -> None:
        self.kept: bool | None = None
        self._at: np.ndarray | None = None
        self._pressed: set[int] = set()

    def observe(self, values: dict[str, np.ndarray]) -> None:
        self._show()

    def action(self, tick: int, motion: Motion) -> np.ndarray | None:
        """Where the hand points to."""
        if self._at is None:
            self._at = np.array(motion.position)
        self._listen()
        self._at = np.clip(self._at + SPEED * self.dt * self._push(), self._low, self._high)
        return self._at

    def close(self) -> None:
        self._pygame.display.quit()

    def _listen(self) -> None:
        game = self._pygame
        for event in game.event.get():
            if event.type == game.QUIT:
                self.quits = True
            elif event.type == game.MOUSEMOTION and self._device == "mouse":
                share = np.array(event.pos, dtype=np.float64) / SIDE
                self._at = self._low + share * (self._high - self._low)
            elif event.type == game.KEYDOWN:
                self._pressed.add(event.key)
                if event.key == game.K_ESCAPE:
                    self.quits = True
                elif event.key in (game.K_BACKSPACE, game.K_RETURN):
                    self.kept = event.key == game.K_RETURN
            elif event.type == game.KEYUP:
                self._pressed.discard(event.key)

    def _push(self) -> np.ndarray:
        """Direction (2,) of keyboard and gamepad, at most 1 long."""
        game = self._pygame
        if self._device == "keyboard":
            right, down = (
                float(plus in self._pressed) - float(minus in self._pressed)
                for plus, minus in ((game.K_RIGHT, game.K_LEFT), (game.K_DOWN, game.K_UP))
            )
            push = np.array([right, down])
        elif self._stick is not None:
            push = np.array([self._stick.get_axis(0), self._stick.get_axis(1)])
            push[np.abs(push) < DEAD] = 0.0
        else:
            return np.zeros(2)
        return push / max(np.linalg.norm(push), 1.0)

    def _show(self) -> None:
        game = self._pygame
        picture = game.surfarray.make_surface(np.swapaxes(self._frame(), 0, 1))
        self._window.blit(game.transform.scale(picture, (SIDE, SIDE)), (0, 0))
        try:
            game.display.flip()
        except game.error as error:
            raise DriverError(f"the window is gone ({error}).") from error
