"""Videos of robots that re-grasp: ``python -m benchmarks.render_rollouts [runs=FOLDER]``.

Each policy of the studies ``recovery_TASK_disturbed`` plays the same episode, in which the object
is taken out of the gripper. The videos are ``docs/assets/recovery_lift.webp`` and
``recovery_peg.webp``.
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

from benchmarks.command_line import parse_options
from ebt_policy.envs.env_spec import EVALUATION_SEED
from ebt_policy.envs.perturbations import Perturbation
from ebt_policy.envs.rollout import rollout
from ebt_policy.evaluation.image_figures import side_by_side
from ebt_policy.policies.entries import load_policy_entries

ASSETS = Path("docs/assets")
SIDE = 172  # px, height of a panel
FRAME_STRIDE = 3
HOLD = 12  # frames for which the last frame of the longest episode is shown
# Robots act every 50 ms and every third frame is shown, so videos are 2.5 times as fast.
FRAME_MS = 60

VIDEOS = {  # name -> training runs, perturbation
    "recovery_lift": ("lift_disturbed", Perturbation("object", 12)),
    "recovery_peg": ("metaworld-peg-insert-side_disturbed", Perturbation("object", 5)),
}
POLICIES = {
    "ebt-seed0@steps=2,num_candidates=8": "energy, 2 steps, best of 8",
    "diffusion-seed0@scheduler=ddim,steps=10": "DDIM-10",
    "flow_matching-seed0@steps=2": "flow matching, 2 steps",
}


def record_episode(checkpoint: str, seed: int, perturbation: Perturbation) -> list[np.ndarray]:
    """Return frames (H, W, 3) of a policy's episode."""
    (entry,) = load_policy_entries([checkpoint], torch.device("cpu"))
    spec = replace(entry.env_spec, perturbation=perturbation)
    with tempfile.TemporaryDirectory() as folder:
        (episode,) = rollout(entry.model, spec, [seed], workers=1, videos=1, video_dir=folder)
        print(f"{checkpoint}: score {episode.score:.2f}, {episode.length} steps", flush=True)
        return read_frames(str(episode.video))


def join_panels(videos: Mapping[str, Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Join videos side by side, with titles; a panel that has ended shows its last frame."""
    thinned = {title: [*frames[:-1:FRAME_STRIDE], frames[-1]] for title, frames in videos.items()}
    longest = max(map(len, thinned.values())) + HOLD
    return [
        side_by_side(
            {title: frames[min(step, len(frames) - 1)] for title, frames in thinned.items()}, SIDE
        )
        for step in range(longest)
    ]


def write_webp(frames: Sequence[np.ndarray], target: Path, frame_ms: float) -> None:
    """Write frames (H, W, 3) uint8 as an animated WebP, which GitHub can show."""
    images = [Image.fromarray(frame) for frame in frames]
    target.parent.mkdir(parents=True, exist_ok=True)
    images[0].save(
        target, save_all=True, append_images=images[1:], duration=frame_ms, loop=0,
        quality=55, method=4,
    )  # fmt: skip
    print(f"written to {target}: {len(images)} frames, {target.stat().st_size // 1024} KB")


def read_frames(video: str) -> list[np.ndarray]:
    """Return all frames (H, W, 3) uint8 of a video file."""
    with av.open(video) as opened:
        return [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]


def main() -> None:
    options = parse_options(runs="runs/manipulation", seed=EVALUATION_SEED)
    for name, (runs, perturbation) in VIDEOS.items():
        panels = {
            title: record_episode(
                str(Path(options.runs) / runs / entry), options.seed, perturbation
            )
            for entry, title in POLICIES.items()
        }
        write_webp(join_panels(panels), ASSETS / f"{name}.webp", FRAME_MS)


if __name__ == "__main__":
    main()
