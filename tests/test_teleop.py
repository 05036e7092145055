"""Teleoperation by mouse, keyboard and gamepad: limits and recording."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ebt_policy.data.push_t import load_push_t
from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.clock import SimulatedClock
from ebt_policy.real_robot.drivers.sim import SimRobot
from ebt_policy.real_robot.episode_runner import EpisodeRunner, tick_seconds
from ebt_policy.real_robot.inference_worker import SimulatedWorker
from ebt_policy.real_robot.robots import Robot, load_robot
from ebt_policy.real_robot.teleop_device import TeleopContext, build_device


@pytest.fixture
def screen(monkeypatch):
    """Use a dummy display, and return pygame."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    import pygame

    yield pygame
    pygame.display.quit()


def teleop_runner(device, record=None, **change):
    robot: Robot = load_robot("sim_push_t", *(f"robot.{k}={v}" for k, v in change.items()))
    clock = SimulatedClock()
    driver = SimRobot(EnvSpec("ebt_policy/PushT-v0", 300), clock, command_s=0.3, render=True)
    driver.connect()
    dt = tick_seconds(robot, 1.0)
    worker = SimulatedWorker(clock, lambda: 0.0)
    teleop: Any = build_device(device, TeleopContext(driver, robot.safety, dt, worker))
    runner = EpisodeRunner(robot, driver, teleop, clock, {}, watchdog=False, record=record)
    runner.prepare()
    return runner, teleop


def test_mouse_teleoperation_is_recorded(screen, tmp_path):
    runner, teleop = teleop_runner("mouse", record=tmp_path / "mine", episode_s=4)

    def point(tick):
        if tick.number == 3:
            move = screen.event.Event(
                screen.MOUSEMOTION, pos=(256, 128), rel=(0, 0), buttons=(0, 0, 0)
            )
            screen.event.post(move)

    runner.loop.observers = [*runner.loop.observers, point]
    episode = runner.run_episode(4)
    commands = np.array([tick.command for tick in episode.ticks])
    goal = np.array([256.0, 128.0])
    np.testing.assert_allclose(commands[2], commands[0])  # no motion before the event
    np.testing.assert_allclose(commands[-1], goal)
    assert np.abs(np.diff(commands, axis=0)).max() <= 100  # in several steps, within the limits
    demonstrations, _ = load_push_t(path=str(tmp_path / "mine"))
    assert len(demonstrations) == 1 and demonstrations.arrays["obs"].shape == (40, 20)
    np.testing.assert_allclose(demonstrations.arrays["action"], commands, atol=1e-3)
    teleop.close()


def test_keys_move_keep_discard_and_quit(screen, tmp_path):
    runner, teleop = teleop_runner("keyboard", record=tmp_path / "mine", episode_s=3)
    pressed = {
        2: (screen.KEYDOWN, screen.K_RIGHT),
        12: (screen.KEYUP, screen.K_RIGHT),
        20: (screen.KEYDOWN, screen.K_RETURN),
    }

    def press(tick):
        if tick.number in pressed:
            kind, key = pressed[tick.number]
            screen.event.post(screen.event.Event(kind, key=key))

    runner.loop.observers = [*runner.loop.observers, press]
    quits = lambda: teleop.quit or teleop.keep is not None  # noqa: E731
    keep = lambda episode: bool(teleop.keep)  # noqa: E731
    episode = runner.run_episode(4, should_quit=quits, should_keep=keep)
    moved = episode.ticks[-1].command - episode.ticks[0].command
    np.testing.assert_allclose(moved, [300, 0], atol=35)
    assert len(episode.ticks) == 22 and episode.kept
    pressed[20] = (screen.KEYDOWN, screen.K_BACKSPACE)
    assert not runner.run_episode(5, should_quit=quits, should_keep=keep).kept
    assert len(load_push_t(path=str(tmp_path / "mine"))[0]) == 1
    pressed[20] = (screen.KEYDOWN, screen.K_ESCAPE)
    runner.run_episode(6, should_quit=quits, should_keep=keep)
    assert teleop.quit


def test_gamepad_stick_moves_the_robot(screen, monkeypatch):
    axes = [0.0, 0.05]
    stick = SimpleNamespace(init=lambda: None, get_axis=lambda i: axes[i])
    with pytest.raises(ConfigError, match="no gamepad is plugged in"):
        teleop_runner("gamepad")
    monkeypatch.setattr(screen.joystick, "get_count", lambda: 1)
    monkeypatch.setattr(screen.joystick, "Joystick", lambda i: stick)
    runner, _ = teleop_runner("gamepad", episode_s=2)

    def push(tick):
        axes[0] = -0.5 if tick.number >= 5 else 0.0

    runner.loop.observers = [*runner.loop.observers, push]
    commands = np.array([tick.command for tick in runner.run_episode(4).ticks])
    np.testing.assert_allclose(commands[5], commands[0])  # a stick at rest is not exactly zero
    assert commands[9][0] < commands[5][0] - 40


def test_unknown_devices_and_missing_screens_are_refused(screen, monkeypatch):
    with pytest.raises(ConfigError, match="input=glove is unknown; there are mouse, keyboard"):
        teleop_runner("glove")
    screen.display.quit()
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(ConfigError, match="there is no screen for a window"):
        teleop_runner("mouse")
