"""Strips of predicted frames and rollouts of Push-T, rendered from the packaged demonstrations."""

from __future__ import annotations

from PIL import Image

from benchmarks.device import DEVICE
from benchmarks.render_rollouts import read_frames, write_webp
from benchmarks.study import StudyContext
from ebt_policy.video.evaluate import evaluate_video

FRAME_MS = 100  # the recorded frame rate


def video_example(context: StudyContext) -> None:
    """Draw ``video.png`` and ``video.webp``, which show only demonstrations of this package."""
    evaluate_video(
        context.checkpoints(), output=context.output, device=DEVICE, command=context.command
    )
    context.assets.mkdir(parents=True, exist_ok=True)
    with Image.open(context.output / "strips.png") as strips:  # A palette halves the file size.
        white = Image.new("RGBA", strips.size, "white")
        flat = Image.alpha_composite(white, strips).convert("RGB")
        flat.quantize(256).save(context.assets / "video.png", optimize=True)
    frames = read_frames(str(context.output / "rollouts.mp4"))
    write_webp(frames, context.assets / "video.webp", FRAME_MS)
