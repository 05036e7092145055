"""Teleoperation of a simulated robot by mouse, keyboard or gamepad in a window.

A person is an action source like a planner, so their actions are limited and recorded in the same
way.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.drivers.base import Renderable
from ebt_policy.real_robot.errors import DriverError
from ebt_policy.real_robot.safety import Motion
from ebt_policy.real_robot.teleop_device import TeleopContext, TeleopDevice

WINDOW_SIZE = 512  # px, width and height
SPEED = 300.0  # speed with keyboard and gamepad, in units of the action per second
DEAD_ZONE = 0.1  # deflections of a gamepad's axis below this are ignored
HELP = "mouse, arrows or stick move; Backspace drops the episode, Enter keeps it, Esc quits"


class TeleopWindow(TeleopDevice):
    """A window that shows the scene of a simulated robot, whose actions have two entries.

    Args:
        context: see `TeleopContext`.

    Raises:
        ConfigError: the robot cannot be rendered or has other actions, the device is not connected,
            or there is no screen.
    """

    device: ClassVar[str]

    def __init__(self, context: TeleopContext) -> None:
        import pygame

        if not isinstance(context.driver, Renderable) or len(context.limits.low) != 2:
            raise ConfigError(
                f"input={self.device} needs a simulated robot that can be rendered and whose "
                "actions have two entries; use another robot, or a device of your own."
            )
        super().__init__(context)
        self._pygame: Any = pygame
        self._frame = context.driver.render
        self._low, self._high = context.limits.low, context.limits.high
        try:
            pygame.display.init()
            self._window = pygame.display.set_mode((WINDOW_SIZE, WINDOW_SIZE))
        except pygame.error as error:
            raise ConfigError(
                f"there is no screen for a window ({error}); mode=teleop needs one."
            ) from error
        pygame.display.set_caption(HELP)
        self._stick: Any = None
        if self.device == "gamepad":
            pygame.joystick.init()
            if not pygame.joystick.get_count():
                raise ConfigError("no gamepad is plugged in; use input=mouse or input=keyboard.")
            self._stick = pygame.joystick.Joystick(0)
            self._stick.init()
        self.restart()

    def warm_up(self, values: dict[str, np.ndarray], position: np.ndarray) -> None:
        self._show()

    def restart(self) -> None:
        super().restart()
        self._target: np.ndarray | None = None
        self._pressed: set[int] = set()

    def observe(self, values: dict[str, np.ndarray]) -> None:
        self._show()

    def action(self, tick: int, motion: Motion) -> np.ndarray | None:
        """Return the position (2,) that the person points to."""
        if self._target is None:
            self._target = np.array(motion.position)
        self._handle_events()
        self._target = np.clip(
            self._target + SPEED * self.dt * self._direction(), self._low, self._high
        )
        return self._target

    def close(self) -> None:
        """Close the window."""
        self._pygame.display.quit()

    def _handle_events(self) -> None:
        game = self._pygame
        for event in game.event.get():
            if event.type == game.QUIT:
                self.quit = True
            elif event.type == game.MOUSEMOTION and self.device == "mouse":
                fraction = np.array(event.pos, dtype=np.float64) / WINDOW_SIZE
                self._target = self._low + fraction * (self._high - self._low)
            elif event.type == game.KEYDOWN:
                self._pressed.add(event.key)
                if event.key == game.K_ESCAPE:
                    self.quit = True
                elif event.key in (game.K_BACKSPACE, game.K_RETURN):
                    self.keep = event.key == game.K_RETURN
            elif event.type == game.KEYUP:
                self._pressed.discard(event.key)

    def _direction(self) -> np.ndarray:
        """Return the direction (2,) from keyboard or gamepad, with a norm of at most 1."""
        game = self._pygame
        if self.device == "keyboard":
            right, down = (
                float(plus in self._pressed) - float(minus in self._pressed)
                for plus, minus in ((game.K_RIGHT, game.K_LEFT), (game.K_DOWN, game.K_UP))
            )
            direction = np.array([right, down])
        elif self._stick is not None:
            direction = np.array([self._stick.get_axis(0), self._stick.get_axis(1)])
            direction[np.abs(direction) < DEAD_ZONE] = 0.0
        else:
            return np.zeros(2)
        return direction / max(np.linalg.norm(direction), 1.0)

    def _show(self) -> None:
        game = self._pygame
        frame = game.surfarray.make_surface(np.swapaxes(self._frame(), 0, 1))
        self._window.blit(game.transform.scale(frame, (WINDOW_SIZE, WINDOW_SIZE)), (0, 0))
        try:
            game.display.flip()
        except game.error as error:
            raise DriverError(f"the window is gone ({error}).") from error


class Mouse(TeleopWindow):
    """The robot moves to the mouse."""

    device = "mouse"


class Keyboard(TeleopWindow):
    """The arrow keys move the robot."""

    device = "keyboard"


class Gamepad(TeleopWindow):
    """The left stick moves the robot."""

    device = "gamepad"
