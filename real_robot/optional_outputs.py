"""Optional outputs of a run: a failing video or Rerun recording does not stop the run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from ebt_policy.envs.mp4_writer import video_writer
from ebt_policy.real_robot.loop import Tick


class TickWriter(Protocol):
    """An observer of ticks that writes a file. The file is complete after `close`."""

    def __call__(self, tick: Tick) -> None: ...

    def close(self) -> None: ...


class TickVideo:
    """A video with one frame for each tick.

    Args:
        path: path of the MP4 file.
        fps: frames per second.
        frame: function that returns the current frame, (H, W, 3) uint8.
    """

    def __init__(self, path: Path, fps: float, frame: Callable[[], np.ndarray]) -> None:
        self._frame, self._frames = frame, 0
        self._file = ExitStack()
        self._add = self._file.enter_context(video_writer(path, fps))

    def __call__(self, tick: Tick) -> None:
        self._frames += 1
        self._add(self._frame())

    def close(self) -> None:
        # An episode that ended before its first tick has no frames, which is not an error.
        with suppress(*(() if self._frames else (ValueError,))):
            self._file.close()


class BestEffort:
    """An output that is ignored after its first failure.

    Args:
        option: name of the option that requested the output, for the message.
        make: function that opens the output.

    Attributes:
        failure: message of the first failure, "" if there was none.
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
        """Complete the file. Further calls have no effect."""
        output, self._output = self._output, None
        if output is not None:
            self._try(output.close)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # An error of any library must not stop the robot.
            self.failure = self.failure or f"{self._option}=: incomplete output ({error})"
