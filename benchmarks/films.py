"""Films of robots for the README: ``python -m benchmarks.films [runs=runs/manipulation]``.

Plays one episode a panel, all at once, and writes ``docs/assets/robots.webp``, the energy policy on
several tasks, and ``docs/assets/recovery_lift.webp``, policies from which the cube is taken away.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.settings import settings
from ebt_policy.evaluation.contestants import load_contestants
from envs.perturb import Perturbation
from envs.rollout import rollout
from envs.spec import EVALUATION_SEED

ASSETS = Path("docs/assets")
SIDE = 176  # px of a panel
EVERY = 3  # so many frames become one
HOLD = 12  # frames for which the end of the longest episode is shown
MILLISECONDS = 60  # a frame; the robots act every 50, so this is some two and a half times as fast

ENERGY = "ebt-seed0@steps=2,candidates=8"
ROBOTS = {
    "lift": "Lift",
    "can": "Can",
    "square": "Square",
    "adroit_door": "Adroit door",
    "metaworld-peg-insert-side": "peg insertion",
    "metaworld-basketball": "basketball",
    "metaworld-shelf-place": "shelf",
    "metaworld-stick-pull": "stick",
}
RECOVERY = {
    ENERGY: "energy, 2 steps, best of 8",
    "diffusion-seed0@scheduler=ddim,steps=10": "DDIM-10",
    "flow_matching-seed0@steps=2": "flow matching, 2 steps",
}


def film(checkpoint: str, seed: int, perturbation: Perturbation | None = None) -> list[np.ndarray]:
    """Frames (H, W, 3) of a policy's episode."""
    (one,) = load_contestants([checkpoint], torch.device("cpu"))
    spec = replace(one.env_spec, perturbation=perturbation)
    with tempfile.TemporaryDirectory() as folder:
        (episode,) = rollout(one.policy, spec, [seed], workers=1, videos=1, video_dir=folder)
        print(f"{checkpoint}: score {episode.score:.2f}, {episode.length} steps", flush=True)
        with av.open(str(episode.video)) as video:
            return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def side_by_side(films: Mapping[str, Sequence[np.ndarray]], columns: int, target: Path) -> None:
    """One animation of several films, each with its title; those that end stand still."""
    thinned = {title: [*frames[:-1:EVERY], frames[-1]] for title, frames in films.items()}
    longest = max(map(len, thinned.values())) + HOLD
    rows = -(-len(films) // columns)
    pictures = []
    for at in range(longest):
        whole = Image.new("RGB", (columns * SIDE, rows * SIDE), "white")
        pencil = ImageDraw.Draw(whole)
        for i, (title, frames) in enumerate(thinned.items()):
            corner = (i % columns * SIDE, i // columns * SIDE)
            panel = Image.fromarray(frames[min(at, len(frames) - 1)])
            whole.paste(panel.resize((SIDE - 4, SIDE - 4), Image.Resampling.LANCZOS), corner)
            where = (corner[0] + 5, corner[1] + 3)
            pencil.text(where, title, fill="white", stroke_width=2, stroke_fill="black")
        pictures.append(whole)
    target.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(
        target, save_all=True, append_images=pictures[1:], duration=MILLISECONDS, loop=0,
        quality=55, method=4,
    )  # fmt: skip
    print(f"written to {target}: {len(pictures)} pictures, {target.stat().st_size // 1024} KB")


def main() -> None:
    given = settings(runs="runs/manipulation", seed=EVALUATION_SEED, disturbed="object=12")
    runs = Path(given.runs)
    robots = {title: film(str(runs / task / ENERGY), given.seed) for task, title in ROBOTS.items()}
    side_by_side(robots, 4, ASSETS / "robots.webp")
    kind, _, strength = given.disturbed.partition("=")
    what = Perturbation(kind, float(strength))
    disturbed = {
        title: film(str(runs / "lift_disturbed" / entry), given.seed, what)
        for entry, title in RECOVERY.items()
    }
    side_by_side(disturbed, 3, ASSETS / "recovery_lift.webp")


if __name__ == "__main__":
    main()
