"""Video compared: ``python -m benchmarks.video [seeds=3 updates=1000 videos=g1]``.

Settings: seeds, updates, parallel, folder, videos (g1 or push_t). Trains the energy model, the
refiner and Transformer++ at three sizes on the same features, with the same batches, and compares
how well they foresee the next frame of test clips, what more steps bring and whether energies tell
what is hard. Writes ``docs/results/video_VIDEOS.json``, and strips of frames and rollouts as an MP4
into its folder's ``pictures``. It may be repeated after a kill; g1 needs $EBT_POLICY_DATA.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.runs import entry_of_runs, train_all
from benchmarks.settings import DEVICE, command, settings, store
from ebt_policy.evaluation.tables import format_count, format_interval, markdown
from ebt_policy.video.evaluate import SIGNALS, evaluate_video

SIZES = ("4xs", "2xs", "s")
MODELS = {
    "ebt": ["model=ebt"],
    "ebt_s2": ["model=ebt", "objective=s2"],
    "refiner": ["model=refiner"],
    "transformer_pp": ["model=transformer_pp"],
}
STEPS = {"ebt": (2, 1), "ebt_s2": (2, 1), "refiner": (2, 1)}  # of what descends
NAMES = {
    "ebt": "energy, System 1",
    "ebt_s2": "energy, System 2",
    "refiner": "refiner, no energy",
    "transformer_pp": "Transformer++",
}
AUTOENCODER = ["model=autoencoder", "train.steps=1000", "train.minutes=null"]
FRAMES = {"g1": [], "push_t": ["task.height=64"]}  # what is square stays it


def of_entry(name: str) -> tuple[str, str, str]:
    """Model, size and steps ("" of what does not descend) of an entry's name."""
    run, _, how = name.partition("@")
    model, _, size = run.partition("-seed")[0].partition("-")
    return model, size, how.removeprefix("steps=")


def table(result: dict[str, Any]) -> str:
    """Errors of all models at all sizes, and their distance to Transformer++ of the same size."""
    against = {
        of_entry(pair["a"]): format_interval(pair["diff"], pair["ci95"], signed=True)
        for pair in result["paired"]
        if of_entry(pair["b"]) == ("transformer_pp", of_entry(pair["a"])[1], "")
    }
    rows = []
    for entry in result["entries"]:
        this = of_entry(entry["name"])
        told = entry["hard"]
        rows.append(
            (
                NAMES[this[0]],
                format_count(entry["params"]),
                this[2],
                format_interval(entry["error"]["mean"], entry["error"]["ci95"]),
                against.get(this, ""),
                *(f"{told[name]['mean']:.2f}" if name in told else "" for name in SIGNALS),
            )
        )
    still = result["entries"][0]["repeating"]
    shown = format_interval(still["mean"], still["ci95"])
    rows.append(("repeating the last frame", "", "", shown, *("" for _ in range(1 + len(SIGNALS)))))
    header = (
        "model", "parameters", "steps", "error of the next frame", "minus Transformer++'s",
        *(f"hard told by {name}" for name in SIGNALS),
    )  # fmt: skip
    return markdown(header, rows, left=1)


def main() -> None:
    given = settings(seeds=3, updates=1000, parallel=2, folder="runs/video_study", videos="g1")
    if given.videos not in FRAMES:
        raise SystemExit(f"error: videos must be one of {', '.join(FRAMES)}.")
    folder = Path(given.folder) / given.videos
    video = ["task=video", f"task.videos={given.videos}", *FRAMES[given.videos]]
    train_all({"autoencoder": [*video, *AUTOENCODER]}, range(1), folder, 1)
    # Compiling would take longer than training.
    common = [*video, f"task.features={folder / 'autoencoder-seed0'}", "train.minutes=null",
              "train.compile=false", f"train.steps={given.updates}"]  # fmt: skip
    runs = {
        f"{name}-{size}": [*common, f"size={size}", *model]
        for size in SIZES
        for name, model in MODELS.items()
    }
    train_all(runs, range(given.seeds), folder, given.parallel)
    output = folder / "evaluation"
    entries = [
        f"{model}-{size}" + (f"@steps={steps}" if steps else "")
        for size in SIZES
        for model in MODELS
        for steps in STEPS.get(model, ("",))
    ]
    result = evaluate_video(
        [str(folder / entry_of_runs(entry)) for entry in entries],
        output=output, device=DEVICE, command=command("video"),
    )  # fmt: skip
    store(f"video_{given.videos}.json", json.dumps(result, indent=1) + "\n")
    evaluate_video(  # of the largest alone: pictures that are not too many to look at
        [str(folder / f"{name}-{SIZES[-1]}-seed0") for name in ("ebt", "transformer_pp")],
        output=folder / "pictures", device=DEVICE, command=command("video"),
    )  # fmt: skip
    print(table(result))


if __name__ == "__main__":
    main()
