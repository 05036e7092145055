"""Denoising compared: ``python -m benchmarks.denoising [seeds=3 updates=4000 parallel=2]``.

Settings: seeds, updates, parallel, folder, size, set (cbsd68, or in grey bsd68 or set12, which
share their training). Trains the energy model by its recipes, the refiner and DiT (up to the noise
of the others' training, and up to its double) on BSDS500, and takes noise of both levels from the
set at several budgets of passes, beside BM3D, which is told the level. Writes
``docs/results/denoising_SET_SIZE.json`` and, of the models, ``docs/assets/denoising_KIND_SIZE.png``
and ``energy_maps_KIND_SIZE.png`` with KIND colour or grey. It may be repeated after a kill; needs
$EBT_POLICY_DATA and the package bm3d.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.runs import entry_of_runs, train_all
from benchmarks.settings import DEVICE, command, settings, store
from ebt_policy.evaluation.image_figures import ImageRow, energy_maps, image_grid, save_png
from ebt_policy.evaluation.image_metrics import compute_metrics, compute_psnr
from ebt_policy.evaluation.statistics import mean_ci
from ebt_policy.evaluation.tables import format_estimate, markdown
from ebt_policy.image.evaluate import DenoisingConfig, evaluate_images
from ebt_policy.image.metrics import load_eval_set, noisy_versions
from ebt_policy.image.model import EnergyImageModel, ImageModel
from ebt_policy.image.tiling import restore_tiled

NOISE = 100  # of training, as in the EBT paper
IMAGES = ["task=image", "task.images=bsds500", "train.minutes=null"]
SETS = {"cbsd68": ("colour", None), "bsd68": ("grey", None), "set12": ("grey", "set12")}
CHANNELS = {"colour": 3, "grey": 1}
MODELS = {
    "ebt": ["model=ebt"],
    "ebt_s2": ["model=ebt", "objective=s2"],
    "ebt_all_levels": ["model=ebt", "objective=corrupted", f"task.noise={2 * NOISE}"],
    "refiner": ["model=refiner"],
    "dit": ["model=dit"],
    "dit_wide": ["model=dit", f"task.noise={2 * NOISE}"],
}
PASSES = {
    "ebt": (1, 2, 3, 10),
    "ebt_s2": (1, 2, 3, 10),
    "ebt_all_levels": (1, 2, 3, 10),
    "refiner": (1, 2, 3, 10),
    "dit": (1, 2, 3, 10, 100, 300),
    "dit_wide": (1, 2, 3, 10, 100),
}
HOW = {"dit": ",told=false"}  # as the paper ran it
NAMES = {
    "ebt": "energy, System 1",
    "ebt_s2": "energy, System 2",
    "ebt_all_levels": "energy, from all levels up to the double",
    "refiner": "refiner, no energy",
    "dit": "DiT, as the paper ran it",
    "dit_wide": "DiT, trained up to the double, told the level",
}
HEADLINE = {  # entries, as `table` has them all
    "ebt": (1, 2),
    "ebt_all_levels": (2,),
    "refiner": (2,),
    "dit": (1, 100, 300),
    "dit_wide": (1, 10, 100),
}
DRAWN = {
    ("ebt", 2): "energy, System 1\n2 steps",
    ("ebt_all_levels", 2): "energy, all levels\n2 steps",
    ("refiner", 2): "refiner\n2 steps",
    ("dit", 100): "DiT, as the paper\nran it, 100 passes",
    ("dit_wide", 1): "DiT, told the level\n1 pass",
}
PICTURES = 2
TILES = 8
MEASURES = {
    "psnr": ("PSNR, dB", 2), "mse": ("MSE", 1), "psnr_double": ("PSNR, twice the noise", 2),
    "mse_double": ("MSE, twice the noise", 1),
}  # fmt: skip


def yardstick(run: Path, images: str | None) -> dict[str, Any]:
    """BM3D, told the deviation, on the same noisy images."""
    bm3d: Any = import_module("bm3d")
    model = ImageModel.from_checkpoint(run, "cpu")
    test = load_eval_set(model, images, torch.device("cpu"))
    found: dict[str, Any] = {"name": "bm3d"}
    for where, level in (("", NOISE), ("_double", 2 * NOISE)):
        kept = float(model.abar[level])
        deviation = ((1 - kept) / kept) ** 0.5 / 2  # of images in [0, 1]
        clean = []
        for noisy in noisy_versions(model, test.images, level):
            seen = noisy.permute(1, 2, 0).numpy().astype(np.float64) / kept**0.5 / 2 + 0.5
            made: Any = bm3d.bm3d_rgb if seen.shape[2] == 3 else bm3d.bm3d
            out = np.atleast_3d(made(seen, deviation)).clip(0, 1)
            clean.append(torch.from_numpy(out).permute(2, 0, 1).float() * 2 - 1)
        for name, values in compute_metrics(clean, test.images).items():
            found[name + where] = mean_ci(values)
    return found


def draw(folder: Path, path: Path) -> None:
    """What models of the first seed make of images with noise of both levels.

    The images are drawn here: those that were tested on may not be given away.
    """
    models = {}
    for (name, steps), title in DRAWN.items():
        models[title] = ImageModel.from_checkpoint(folder / f"{name}-seed0", DEVICE)
        how = {"told": False} if name == "dit" else {}
        models[title].configure_inference(steps=steps, **how)
    first = next(iter(models.values()))
    clean = load_eval_set(first, "leaves", DEVICE).images[:PICTURES]
    strips = []
    for level, where in ((NOISE, "noise of training"), (2 * NOISE, "twice the noise")):
        noisy = noisy_versions(first, clean, level)
        columns = {"noisy": noisy}
        for title, model in models.items():
            found = restore_tiled(model, noisy, level, [0] * len(noisy), follow=False)
            columns[title] = [one.images for one in found]
        for i, truth in enumerate(clean):
            row = [of[i] for of in columns.values()]
            ratios = compute_psnr(row, [truth] * len(row))
            titles = [
                f"{name}\n{ratio:.1f} dB" for name, ratio in zip(columns, ratios, strict=True)
            ]
            shown = [x.cpu() for x in (*row, truth)]
            strips.append(ImageRow(f"{where}, {i + 1}", shown, [*titles, "clean"]))
    save_png(image_grid(strips), path)


def draw_maps(folder: Path, path: Path) -> None:
    """Tiles of images drawn here, clean, noisy and restored, and the energies of their patches."""
    model = EnergyImageModel.from_checkpoint(folder / "ebt-seed0", DEVICE)
    side = model.shape.side
    images = load_eval_set(model, "leaves", DEVICE).images[:TILES]
    clean = torch.stack([image[:, :side, :side] for image in images])
    noisy = model.degrade(clean, NOISE, torch.Generator().manual_seed(0))
    shown = {"clean": clean, "noisy": noisy, "restored": model.restore(noisy, NOISE).images}
    rows = [(name, list(x.cpu()), list(model.energy_map(x).cpu())) for name, x in shown.items()]
    save_png(energy_maps(rows), path)


def table(
    result: dict[str, Any],
    chosen: Mapping[str, Sequence[int]] = PASSES,
    measures: Sequence[str] = tuple(MEASURES),
) -> str:
    """What was measured at both levels of noise, for those of chosen models and budgets of passes
    that a result has."""
    found = {
        (entry["name"].partition("-seed")[0], entry["steps"]): entry for entry in result["entries"]
    }
    rows = [
        (
            NAMES[name],
            f"{entry['params']:,}",
            str(steps),
            *(format_estimate(entry[key], MEASURES[key][1]) for key in measures),
        )
        for name, budgets in chosen.items()
        for steps in budgets
        if (entry := found.get((name, steps))) is not None
    ]
    bm3d = (format_estimate(result["bm3d"][key], MEASURES[key][1]) for key in measures)
    rows.append(("BM3D, told the deviation", "", "", *bm3d))
    titles = (MEASURES[key][0] for key in measures)
    return markdown(("model", "parameters", "passes", *titles), rows, left=1)


def headline(result: dict[str, Any]) -> str:
    """PSNR of a few models and budgets."""
    return table(result, HEADLINE, ("psnr", "psnr_double"))


def main() -> None:
    given = settings(
        seeds=3, updates=4000, parallel=2, folder="runs/denoising", size="2xs", set="cbsd68"
    )
    if given.set not in SETS:
        raise SystemExit(f"error: set must be one of {', '.join(SETS)}.")
    if find_spec("bm3d") is None:
        raise SystemExit("error: the yardstick needs the package bm3d: pip install bm3d.")
    kind, images = SETS[given.set]
    folder = Path(given.folder) / f"{kind}_{given.size}"
    common = [*IMAGES, f"task.channels={CHANNELS[kind]}", f"size={given.size}",
              f"train.steps={given.updates}"]  # fmt: skip
    runs = {name: [*common, *model] for name, model in MODELS.items()}
    train_all(runs, range(given.seeds), folder, given.parallel)
    entries = [
        f"{name}@steps={steps}{HOW.get(name, '')}" for name in runs for steps in PASSES[name]
    ]
    result = evaluate_images(
        [str(folder / entry_of_runs(entry)) for entry in entries],
        DenoisingConfig(images, NOISE),
        output=folder / "evaluation" / given.set,
        device=DEVICE,
        command=command("denoising"),
    )
    result["seeds"], result["updates"] = given.seeds, given.updates
    result["bm3d"] = yardstick(folder / "ebt-seed0", images)
    store(f"denoising_{given.set}_{given.size}.json", json.dumps(result, indent=1) + "\n")
    draw(folder, Path(f"docs/assets/denoising_{kind}_{given.size}.png"))
    draw_maps(folder, Path(f"docs/assets/energy_maps_{kind}_{given.size}.png"))
    print(table(result))


if __name__ == "__main__":
    main()
