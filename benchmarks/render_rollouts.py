"""Films of robots that try again: ``python -m benchmarks.render_rollouts [runs=FOLDER]``.

Takes away what the robot holds, once for each policy of ``benchmarks.recovery``'s studies, all in
the same episode, and writes ``docs/assets/recovery_lift.webp`` and ``recovery_peg.webp``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from benchmarks.settings import settings
from ebt_policy.envs.env_spec import EVALUATION_SEED
from ebt_policy.envs.perturbations import Perturbation
from ebt_policy.envs.rollout import rollout
from ebt_policy.evaluation.image_figures import side_by_side
from ebt_policy.policies.entries import load_policy_entries

ASSETS = Path("docs/assets")
SIDE = 172  # px of a panel
EVERY = 3  # so many frames become one
HOLD = 12  # frames for which the end of the longest episode is shown
MILLISECONDS = 60  # a frame; the robots act every 50, so this is some two and a half times as fast

FILMS = {  # name of the film -> training runs, what goes wrong
    "recovery_lift": ("lift_disturbed", Perturbation("object", 12)),
    "recovery_peg": ("metaworld-peg-insert-side_disturbed", Perturbation("object", 5)),
}
POLICIES = {
    "ebt-seed0@steps=2,candidates=8": "energy, 2 steps, best of 8",
    "diffusion-seed0@scheduler=ddim,steps=10": "DDIM-10",
    "flow_matching-seed0@steps=2": "flow matching, 2 steps",
}


def film(checkpoint: str, seed: int, perturbation: Perturbation) -> list[np.ndarray]:
    """Frames (H, W, 3) of a policy's episode."""
    (one,) = load_policy_entries([checkpoint], torch.device("cpu"))
    spec = replace(one.env_spec, perturbation=perturbation)
    with tempfile.TemporaryDirectory() as folder:
        (episode,) = rollout(one.model, spec, [seed], workers=1, videos=1, video_dir=folder)
        print(f"{checkpoint}: score {episode.score:.2f}, {episode.length} steps", flush=True)
        return frames_of(str(episode.video))


def together(films: Mapping[str, Sequence[np.ndarray]]) -> list[np.ndarray]:
    """One film of several, beside each other with their titles; those that end stand still."""
    thinned = {title: [*frames[:-1:EVERY], frames[-1]] for title, frames in films.items()}
    longest = max(map(len, thinned.values())) + HOLD
    return [
        side_by_side(
            {title: frames[min(at, len(frames) - 1)] for title, frames in thinned.items()}, SIDE
        )
        for at in range(longest)
    ]


def animation(frames: Sequence[np.ndarray], target: Path, milliseconds: float) -> None:
    """Write frames (H, W, 3) uint8 as an animated WebP, which pages of GitHub play."""
    pictures = [Image.fromarray(frame) for frame in frames]
    target.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(
        target, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0,
        quality=55, method=4,
    )  # fmt: skip
    print(f"written to {target}: {len(pictures)} pictures, {target.stat().st_size // 1024} KB")


def frames_of(video: str) -> list[np.ndarray]:
    """All frames (H, W, 3) uint8 of a video file."""
    with av.open(video) as opened:
        return [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]


def main() -> None:
    given = settings(runs="runs/manipulation", seed=EVALUATION_SEED)
    for name, (runs, what) in FILMS.items():
        played = {
            title: film(str(Path(given.runs) / runs / entry), given.seed, what)
            for entry, title in POLICIES.items()
        }
        animation(together(played), ASSETS / f"{name}.webp", MILLISECONDS)


if __name__ == "__main__":
    main()
