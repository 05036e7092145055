"""Decoding of single frames of video files.

Shapes: H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from ebt_policy.data.zarr_store import EpisodeError
from ebt_policy.io.paths import reason

# Files of untrusted data sets: only local files, in the containers of videos.
OPEN_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi",
    "protocol_whitelist": "file",
}


def decode_frames(
    file: Path, times: Sequence[float] | np.ndarray, fps: float, size: Sequence[int]
) -> np.ndarray:
    """Return the frames of a video at increasing times, (len(times), H, W, 3) uint8.

    The decoder seeks to the last key frame before the first time and decodes from there.

    Args:
        file: the video.
        times: times in seconds.
        fps: frames per second. A frame may be a quarter of a period away from its time.
        size: H and W.

    Raises:
        EpisodeError: the video cannot be read, has frames of another size, or has no frame at a
            time.
    """
    times = np.asarray(times, dtype=np.float64)
    frames: list[np.ndarray] = []
    tolerance, last = 0.25 / fps, None
    if not len(times):
        return np.empty((0, *size, 3), np.uint8)
    try:
        with av.open(str(file), options=OPEN_OPTIONS) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if times[0] > tolerance and stream.time_base is not None:
                offset = int((times[0] - tolerance) / stream.time_base)
                container.seek(max(0, offset), stream=stream)
            for frame in container.decode(stream):
                last = frame.time
                if last is None or last < times[len(frames)] - tolerance:
                    continue
                if last > times[len(frames)] + tolerance:
                    break
                if (frame.height, frame.width) != tuple(size):
                    raise EpisodeError(
                        f"{file} has a frame of {frame.height} x {frame.width} pixels at "
                        f"{last:.3f} s, but the data set declares {size[0]} x {size[1]}."
                    )
                frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == len(times):
                    return np.stack(frames)
    except EpisodeError:
        raise
    except (FFmpegError, IndexError, OSError, ValueError, OverflowError) as error:
        raise EpisodeError(
            f"{file} cannot be decoded ({reason(error)}); copy or record it again."
        ) from error
    stopped = "it has no frames" if last is None else f"the decoder stopped at {last:.3f} s"
    raise EpisodeError(
        f"{file} has no frame at {times[len(frames)]:.3f} s ({stopped}): it is truncated, or its "
        f"rate is not {fps:g} frames per second."
    )
