"""Optional outputs of a run: a video or a Rerun recording that fails stops nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from ebt_policy.envs.mp4_writer import video_writer
from ebt_policy.real_robot.loop import Tick


class TickWriter(Protocol):
    """An observer of ticks that writes a file, which is complete once it is closed."""

    def __call__(self, tick: Tick) -> None: ...

    def close(self) -> None: ...


class TickVideo:
    """A video with a frame for each tick.

    Args:
        path: of the MP4 file.
        fps: frames per second.
        frame: returns the current frame (H, W, 3) uint8.
    """

    def __init__(self, path: Path, fps: float, frame: Callable[[], np.ndarray]) -> None:
        self._frame, self._frames = frame, 0
        self._file = ExitStack()
        self._add = self._file.enter_context(video_writer(path, fps))

    def __call__(self, tick: Tick) -> None:
        self._frames += 1
        self._add(self._frame())

    def close(self) -> None:
        # An episode that a person quit before it began has no video.
        with suppress(*(() if self._frames else (ValueError,))):
            self._file.close()


class BestEffort:
    """An output that is dropped when it fails.

    Args:
        option: that asked for it, for the message.
        make: opens it.

    Attributes:
        failure: the message of the first failure, "" if there was none.
    """

    def __init__(self, option: str, make: Callable[[], TickWriter]) -> None:
        self._option, self.failure = option, ""
        self._output: TickWriter | None = None
        self._try(lambda: setattr(self, "_output", make()))

    def __call__(self, tick: Tick) -> None:
        if self._output is not None and not self.failure:
            output = self._output
            self._try(lambda: output(tick))

    def close(self) -> None:
        """Complete the file, once."""
        output, self._output = self._output, None
        if output is not None:
            self._try(output.close)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # of any library: the robot is more important
            self.failure = self.failure or f"{self._option}=: incomplete output ({error})"
