"""The README's animation: ``python -m benchmarks.pictures checkpoint=RUN [seeds=100000,100003]``.

Plays episodes and writes them side by side to ``docs/assets/push_t.gif``, with the planned chunk of
actions as dots.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image

from ebt_policy.models import load_policy
from ebt_policy.tasks import Task
from envs.rollout import rollout

SIDE = 200  # px of one episode
EVERY = 3  # frames of the episode to one of the animation
LIMIT = 240  # environment steps


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if "checkpoint" not in given:
        sys.exit("error: say which policy plays: checkpoint=RUN.")
    seeds = [int(s) for s in given.get("seeds", "100000,100001,100002").split(",")]
    policy = load_policy(given["checkpoint"])
    spec = Task.of(policy.config).env_spec()
    with tempfile.TemporaryDirectory() as folder:
        results = rollout(policy, spec, seeds, videos=len(seeds), video_dir=folder)
        clips = [iio.imread(str(r.video), plugin="pyav")[:LIMIT:EVERY] for r in results]
    length = max(len(clip) for clip in clips)
    held = [np.concatenate([c, np.repeat(c[-1:], length - len(c), axis=0)]) for c in clips]
    frames = [
        Image.fromarray(np.concatenate([c[i] for c in held], axis=1))
        .resize((SIDE * len(seeds), SIDE), Image.Resampling.LANCZOS)
        .quantize(48, dither=Image.Dither.NONE)
        for i in range(length)
    ]
    target = Path("docs/assets/push_t.gif")
    target.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(
        target, save_all=True, append_images=frames[1:], duration=60 * EVERY, loop=0, optimize=True
    )
    scores = ", ".join(f"seed {r.seed}: {r.score:.2f}" for r in results)
    print(f"written to {target} ({target.stat().st_size // 1024} KB); {scores}")


if __name__ == "__main__":
    main()
