"""A film of what models of video foresee: ``python -m benchmarks.render_video [updates=3000]``.

Settings: updates, size, folder. Trains an autoencoder, the energy model and Transformer++ on Push-T
as it is drawn from the demonstrations that are shipped here, and shows three test clips, each next
frame as it is foreseen, and rollouts. Writes ``docs/assets/video.png`` and ``video.webp``, which
anyone may look at: nothing in them is from a published recording. It may be repeated after a kill.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from benchmarks.render_rollouts import ASSETS, animation, frames_of
from benchmarks.runs import train_all
from benchmarks.settings import DEVICE, command, settings
from benchmarks.video import AUTOENCODER
from ebt_policy.evaluation.tables import markdown_table
from ebt_policy.video.evaluate import VIDEO_REPORT, evaluate_video

MODELS = {"energy": ["model=ebt"], "transformer_pp": ["model=transformer_pp"]}
MILLISECONDS = 100  # a frame, as fast as it was recorded


def main() -> None:
    given = settings(updates=3000, size="s", folder="runs/video_film")
    folder = Path(given.folder)
    video = ["task=video", "task.videos=push_t_expert", "task.height=64"]
    train_all({"autoencoder": [*video, *AUTOENCODER]}, range(1), folder, 1)
    common = [*video, f"task.features={folder / 'autoencoder-seed0'}", f"size={given.size}",
              f"train.steps={given.updates}", "train.minutes=null"]  # fmt: skip
    train_all({name: [*common, *model] for name, model in MODELS.items()}, range(1), folder, 2)
    # One step is better than two: see docs/vision.md.
    entries = [str(folder / name) for name in ("energy-seed0@steps=1", "transformer_pp-seed0")]
    output = folder / "pictures"
    result = evaluate_video(entries, output=output, device=DEVICE, command=command("video_film"))
    with Image.open(output / "strips.png") as strips:  # a palette halves it
        white = Image.new("RGBA", strips.size, "white")
        flat = Image.alpha_composite(white, strips).convert("RGB")
        flat.quantize(256).save(ASSETS / "video.png", optimize=True)
    animation(frames_of(str(output / "rollouts.mp4")), ASSETS / "video.webp", MILLISECONDS)
    print(markdown_table(result, VIDEO_REPORT))


if __name__ == "__main__":
    main()
