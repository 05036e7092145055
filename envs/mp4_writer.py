"""Writer of H.264 MP4 files, which every browser plays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


@contextmanager
def video_writer(path: str | Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Open an MP4 file (h264, yuv420p) and yield the function that appends a frame.

        with video_writer("episode.mp4", fps=20) as add:
            add(frame)  # (H, W, 3) uint8

    All frames have the same size; an odd last row or column is cut off. The frames are written to a
    temporary file, which is renamed to ``path`` when the block ends without an error. Otherwise it
    is deleted. The folder of ``path`` is created if it is missing.

    Raises:
        ValueError: a frame has another shape than the first, or no frame was added.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shape: tuple[int, ...] | None = None
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            stream = container.add_stream("h264", rate=Fraction(fps).limit_denominator(1000))
            stream.pix_fmt = "yuv420p"
            stream.thread_count = 1  # The rollout workers already use all cores.

            def add(frame: np.ndarray) -> None:
                nonlocal shape
                if shape is None:
                    shape = frame.shape
                    stream.height, stream.width = shape[0] // 2 * 2, shape[1] // 2 * 2
                elif shape != frame.shape:
                    raise ValueError(f"all frames must have the shape {shape}, got {frame.shape}")
                even = np.ascontiguousarray(frame[: stream.height, : stream.width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

            yield add
            if shape is None:
                raise ValueError(f"no frame was added to {path}")
            container.mux(stream.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
