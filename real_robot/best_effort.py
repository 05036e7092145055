"""Outputs that a run can do without: a film or a Rerun recording that fails stops nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from ebt_policy.envs.mp4_writer import video_writer
from ebt_policy.real_robot.loop import Tick


class Output(Protocol):
    """An observer of ticks that writes a file, which is whole once it is closed."""

    def __call__(self, tick: Tick) -> None: ...

    def close(self) -> None: ...


class Film:
    """A video with a frame of each tick.

    Args:
        path: of the MP4.
        fps: frames a second.
        frame: gives the frame (H, W, 3) uint8.
    """

    def __init__(self, path: Path, fps: float, frame: Callable[[], np.ndarray]) -> None:
        self._frame, self._frames = frame, 0
        self._file = ExitStack()
        self._add = self._file.enter_context(video_writer(path, fps))

    def __call__(self, tick: Tick) -> None:
        self._frames += 1
        self._add(self._frame())

    def close(self) -> None:
        # An episode that a person left before it began has no film.
        with suppress(*(() if self._frames else (ValueError,))):
            self._file.close()


class BestEffort:
    """An output that is left out from when it fails.

    Args:
        option: that asked for it, for the message.
        make: opens it.

    Attributes:
        failure: what went wrong, "" as long as nothing did.
    """

    def __init__(self, option: str, make: Callable[[], Output]) -> None:
        self._option, self.failure = option, ""
        self._output: Output | None = None
        self._try(lambda: setattr(self, "_output", make()))

    def __call__(self, tick: Tick) -> None:
        if self._output is not None and not self.failure:
            output = self._output
            self._try(lambda: output(tick))

    def close(self) -> None:
        """Make the file whole, once."""
        output, self._output = self._output, None
        if output is not None:
            self._try(output.close)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # whatever its library raises: the robot matters more
            self.failure = self.failure or f"{self._option}: not all was written ({error})"
