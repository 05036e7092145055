"""Training data of the golden cases, and the folder in which they run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.episodes import Episodes


def make_data(root: Path) -> None:
    """Write episode stores, a text, images in classes and a video into a folder."""
    rng = np.random.default_rng(0)
    lengths = np.array([12, 15, 13, 11])
    ends, rows = np.cumsum(lengths), int(lengths.sum())
    walk = np.cumsum(rng.normal(0, 6, (rows, 5)), axis=0)
    state = (np.array([250, 240, 260, 250, 1]) + walk * [1, 1, 1, 1, 0.02]).clip(0, 500)
    action = (state[:, :2] + rng.normal(0, 10, (rows, 2))).clip(0, 512)
    arrays = {"state": state.astype(np.float32), "action": action.astype(np.float32)}
    write_episodes(root / "push_t", Episodes(arrays, ends))
    obs, action = rng.normal(0, 1, (rows, 6)), rng.normal(0, 1, (rows, 10))
    arrays = {"obs": obs.astype(np.float32), "action": action.astype(np.float32)}
    write_episodes(root / "lift", Episodes(arrays, ends))
    (root / "text.txt").write_text("the quick brown fox jumps over the lazy dog, naïvely\n" * 30)
    for number in range(12):
        folder = root / "images" / ("flat", "rough")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        mean = rng.integers(40, 216, (1, 1, 3))
        image = (mean + (5, 30)[number % 2] * rng.normal(0, 1, (24, 24, 3))).clip(0, 255)
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
    _write_video(root / "clips.mkv", rng)


def _write_video(file: Path, rng: np.random.Generator) -> None:
    """Write a lossless video of a square that moves at random."""
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10, options={"level": "3"})
        stream.width, stream.height, stream.pix_fmt = 8, 8, "bgr0"
        top = left = 3
        for _ in range(90):
            top, left = (int(np.clip(x + rng.integers(-1, 2), 0, 5)) for x in (top, left))
            pixels = np.full((8, 8, 3), (30, 60, 90), np.uint8)
            pixels[top : top + 3, left : left + 3] = (230, 200, 120)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@contextmanager
def working_in(root: Path) -> Iterator[None]:
    """Change to a folder, with its own cache and one thread.

    Relative paths make the paths in checkpoints equal on all machines.
    """
    before, threads = Path.cwd(), torch.get_num_threads()
    cache = os.environ.get("EBT_POLICY_CACHE")
    os.chdir(root)
    os.environ["EBT_POLICY_CACHE"] = str(root / "cache")
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        del os.environ["EBT_POLICY_CACHE"]
        if cache is not None:
            os.environ["EBT_POLICY_CACHE"] = cache
        os.chdir(before)
