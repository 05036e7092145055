"""Images made of noise, class by class: ``python -m benchmarks.generation [seeds=3 updates=3000]``.

Settings: seeds, updates, parallel, folder, images (made by each training run at each budget),
features. Trains the energy model by equilibrium matching, its vector twin without an energy, and
DiT on CIFAR-10 with classes, and draws as many images of each class with each budget of passes.
Reports the Fréchet distance to the test images (torchmetrics) and how many images a classifier
takes for what was asked for. ``features=inception`` is the usual FID (it asks for torch-fidelity
and fetches its network); ``features=judge``, the default, uses the classifier's features: such
distances compare with each other, and with no published ones.

Writes ``docs/results/generation.json`` and ``docs/assets/generation.png``. It may be repeated
after a kill; needs $EBT_POLICY_DATA.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markdown import Markdown
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from benchmarks.classifier import Judge, trained_judge
from benchmarks.runs import train_all
from benchmarks.settings import DEVICE, command, settings, store
from ebt_policy.evaluation.entries import matching_runs
from ebt_policy.evaluation.image_figures import ImageRow, image_grid, save_png
from ebt_policy.evaluation.progress import progress_bar
from ebt_policy.evaluation.statistics import success_rate
from ebt_policy.evaluation.tables import format_interval, markdown
from ebt_policy.image.data import load_images
from ebt_policy.image.model import LEVELS, ImageModel

CIFAR = [
    "task=image", "task.images=cifar10", "task.classes=true", f"task.noise={LEVELS}", "size=xs",
    "train.minutes=null",
]  # fmt: skip
MODELS = {
    "ebt": ["model=ebt", "objective=equilibrium"],
    "refiner": ["model=refiner", "objective=equilibrium"],
    "dit": ["model=dit"],
}
NAMES = {"ebt": "energy, equilibrium", "refiner": "the same without an energy", "dit": "DiT, DDIM"}
PASSES = (5, 10, 25, 50)
SHOWN = 2  # images of each class in the picture
BATCH = 250


def drawn(model: ImageModel, passes: int, count: int, classes: int) -> tuple[Tensor, Tensor]:
    """Images as bytes (N, 3, S, S), as many of each class, and their classes (N,)."""
    model.configure_inference(steps=passes)
    generator = torch.Generator().manual_seed(0)
    shape = model.shape
    labels = torch.arange(count) % classes
    noise = torch.randn(count, shape.channels, shape.side, shape.side, generator=generator)
    made = [
        model.restore(x.to(DEVICE), LEVELS, told.to(DEVICE), generator).images.cpu()
        for x, told in zip(noise.split(BATCH), labels.split(BATCH), strict=True)
    ]
    return as_bytes(torch.cat(made)), labels


def as_bytes(images: Tensor) -> Tensor:
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def distance(features: Any, real: Tensor) -> FrechetInceptionDistance:
    """To real images, as bytes; images to measure are added and reset."""
    _, channels, height, width = real.shape
    fid = FrechetInceptionDistance(
        features, reset_real_features=False, input_img_size=(channels, height, width)
    ).to(DEVICE)
    for x in real.split(BATCH):
        fid.update(x.to(DEVICE), real=True)
    return fid


def judged(judge: Judge, images: Tensor, labels: Tensor) -> np.ndarray:
    """Whether each is taken for what was asked for: (N,)."""
    with torch.no_grad():
        found = [
            judge.head(judge.features(x.to(DEVICE))).argmax(1).cpu() for x in images.split(BATCH)
        ]
    return (torch.cat(found) == labels).float().numpy()


def compute_metrics(fid: FrechetInceptionDistance, images: Tensor) -> float:
    for x in images.split(BATCH):
        fid.update(x.to(DEVICE), real=False)
    found = float(fid.compute())
    fid.reset()
    return found


def table(result: dict[str, Any]) -> str:
    """Distances and accuracies at every budget of passes."""
    rows = [
        (
            NAMES[entry["model"]],
            str(entry["steps"]),
            f"{np.mean(entry['distance']):.2f} [{min(entry['distance']):.2f}, "
            f"{max(entry['distance']):.2f}]",
            format_interval(entry["accuracy"]["mean"], entry["accuracy"]["ci95"]),
        )
        for entry in result["entries"]
    ]
    real = result["real"]
    rows.append(("other real images", "", f"{real['distance']:.2f}",
                 f"{real['accuracy']:.2f}"))  # fmt: skip
    header = (
        "model",
        "passes",
        "Fréchet distance, and its range over seeds",
        "taken for its class",
    )
    return markdown(header, rows, left=1)


def main() -> None:
    given = settings(
        seeds=3, updates=3000, parallel=2, folder="runs/generation", images=2000, features="judge"
    )
    if given.features not in ("judge", "inception"):
        raise SystemExit("error: features must be judge or inception.")
    folder = Path(given.folder)
    gallery = load_images("cifar10", None, 3)
    judge = trained_judge(gallery, folder / "judge")
    runs = {name: [*CIFAR, f"train.steps={given.updates}", *how] for name, how in MODELS.items()}
    train_all(runs, range(given.seeds), folder, given.parallel)
    real = {
        part: torch.from_numpy(np.stack(gallery.parts[part].pixels)).permute(0, 3, 1, 2)
        for part in ("validation", "test")
    }
    fid = distance(judge if given.features == "judge" else 2048, real["test"])
    others = real["validation"]  # what neither the models nor the judge learned from
    some = torch.linspace(0, len(others) - 1, min(given.images, len(others))).long()
    labels = torch.tensor(gallery.parts["validation"].labels)[some]
    result: dict[str, Any] = {
        "entries": [],
        "real": {
            "distance": compute_metrics(fid, others[some]),
            "accuracy": float(judged(judge, others[some], labels).mean()),
        },
        "features": given.features, "images": given.images, "updates": given.updates,
        "device": DEVICE.type, "command": command("generation"),
    }  # fmt: skip
    strips = []
    with progress_bar() as bar:
        task = bar.add_task("images", total=len(MODELS) * len(PASSES) * given.seeds)
        for name in MODELS:
            models: list[Any] = [
                ImageModel.from_checkpoint(run, DEVICE)
                for run in matching_runs(folder / f"{name}-seed*")
            ]
            for passes in PASSES:
                distances, right = [], []
                for model in models:
                    made, asked = drawn(model, passes, given.images, len(gallery.classes))
                    distances.append(compute_metrics(fid, made))
                    right.append(judged(judge, made, asked))
                    bar.advance(task)
                    if model is models[0] and passes == PASSES[-1]:
                        row = made[: SHOWN * len(gallery.classes)].float() / 127.5 - 1
                        rows = row.unflatten(0, (SHOWN, -1))
                        strips += [
                            ImageRow(NAMES[name], list(one), gallery.classes) for one in rows
                        ]
                result["entries"].append(
                    {
                        "model": name, "params": models[0].parameter_count, "steps": passes,
                        "distance": distances, "accuracy": success_rate(np.stack(right)),
                    }
                )  # fmt: skip
    save_png(image_grid(strips), Path("docs/assets/generation.png"))
    store("generation.json", json.dumps(result, indent=1) + "\n")
    Console().print(Markdown(table(result)))


if __name__ == "__main__":
    main()
