"""What denoisers know of images: ``python -m benchmarks.representation [seeds=3 updates=3000]``.

Settings: seeds, updates, parallel, folder. Trains energy model, refiner and DiT to take noise from
CIFAR-10 but two of its classes, without labels, and asks of each, frozen,

- how well a linear probe on its features tells the ten classes, beside one on the pixels and one on
  an untrained network (Gladstone et al. 2025, "Energy-Based Transformers", section 4.3);
- how well energy and error of restoring tell what is unlike: the two classes, crops of CBSD68, and
  nothing but noise; and whether a signal, calibrated on half of the images, comes true on the rest.

Writes ``docs/results/representation.json``, and pictures of patches and their energies into its
folder. It may be repeated after a kill; needs $EBT_POLICY_DATA.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.markdown import Markdown
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.runs import train_all
from benchmarks.settings import DEVICE, command, settings, store
from ebt_policy.evaluation.detection import Calibration, Samples, auroc, reliability
from ebt_policy.evaluation.entries import matching_runs
from ebt_policy.evaluation.image_figures import energy_maps, save_png
from ebt_policy.evaluation.progress import progress_bar
from ebt_policy.evaluation.statistics import paired_difference, success_rate
from ebt_policy.evaluation.tables import format_interval, markdown
from ebt_policy.image.data import Crops, ImageDataset, load_images
from ebt_policy.image.model import EnergyImageModel, ImageModel, build_image_model

LEFT_OUT = ("frog", "truck")
CIFAR = [
    "task=image", "task.images=cifar10", f"task.leave_out=[{','.join(LEFT_OUT)}]", "size=2xs",
    "train.minutes=null",
]  # fmt: skip
MODELS = {"ebt": ["model=ebt"], "refiner": ["model=refiner"], "dit": ["model=dit"]}
NAMES = {"ebt": "energy", "refiner": "refiner, no energy", "dit": "DiT", "untrained": "untrained",
         "pixels": "pixels"}  # fmt: skip
PROBED = (0, 25, 50, 100)  # levels of noise on the images whose features are probed
TOLD = 2000  # images of each kind that are to be told apart
DIT_STEPS = 10  # of restoring
BATCH = 256
console = Console()


class Kind(NamedTuple):
    """Images (N, C, S, S), and the numbers (N,) of those that they are parts of: a bootstrap draws
    these. None where each is its own."""

    images: Tensor
    sources: np.ndarray | None = None


def images_of(gallery: ImageDataset, part: str, model: ImageModel) -> tuple[Tensor, np.ndarray]:
    """(N, C, S, S) in [-1, 1], and classes (N,)."""
    of = gallery.parts[part]
    pixels = torch.from_numpy(np.stack(of.pixels))
    rows = model.normalize({"image": pixels, "label": torch.tensor(of.labels)})
    return rows["image"], np.array(of.labels)


def in_batches(made: Callable[[Tensor], Tensor], images: Tensor) -> np.ndarray:
    return torch.cat([made(x.to(DEVICE)).cpu() for x in images.split(BATCH)]).numpy()


def probed(
    features: Callable[[str], np.ndarray], labels: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, float]:
    """A linear probe, from the features of a part: right or wrong (n,) on the test part, and the
    share of the validation part that it tells."""
    scaler = StandardScaler()
    probe = LogisticRegression(max_iter=3000)  # 300 are too few, and more so for some models
    probe.fit(scaler.fit_transform(features("train")), labels["train"])
    right = {
        part: np.equal(probe.predict(scaler.transform(features(part))), labels[part])
        for part in ("validation", "test")
    }
    return right["test"].astype(float), float(right["validation"].mean())


def probe_model(
    model: ImageModel, images: Mapping[str, Tensor], labels: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, int]:
    """`probed` at the level of noise that tells most of the validation part, and the level."""
    best: tuple[float, np.ndarray, int] | None = None
    for noise in PROBED:
        generator = torch.Generator().manual_seed(0)
        right, validated = probed(
            lambda part, noise=noise, generator=generator: in_batches(
                lambda x: model.features(x, noise, generator=generator), images[part]
            ),
            labels,
        )
        if best is None or validated > best[0]:
            best = validated, right, noise
    assert best is not None
    return best[1], best[2]


def evenly(images: Tensor) -> Tensor:
    """`TOLD` of some images at most, of all classes, which come one after the other."""
    return images[np.linspace(0, len(images) - 1, min(TOLD, len(images))).round().astype(int)]


def kinds_of(gallery: ImageDataset, model: ImageModel) -> dict[str, Kind]:
    """What was learned from, first, and what was not."""
    images, labels = images_of(gallery, "test", model)
    out = torch.from_numpy(np.isin(labels, [gallery.classes.index(name) for name in LEFT_OUT]))
    other = load_images("bsds500", None, model.shape.channels).parts["test"]
    crops = Crops(other, model.shape.side, most=TOLD)
    every = torch.arange(len(crops))
    natural = model.normalize(crops.gather(every))["image"]
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(TOLD, *images.shape[1:], generator=generator) * 2 - 1
    return {
        "learned classes": Kind(evenly(images[~out])),
        "classes left out": Kind(evenly(images[out])),
        "crops of CBSD68": Kind(natural, crops.sources(every).numpy()),
        "uniform noise": Kind(noise),
    }


def oddness(model: ImageModel, images: Tensor) -> dict[str, np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    parts = [model.oddness(x.to(DEVICE), generator) for x in images.split(BATCH)]
    return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}


def roughness(images: Tensor) -> np.ndarray:
    """What needs no model: how neighbouring pixels differ, (N,)."""
    return images.diff(dim=-1).abs().flatten(1).mean(1).numpy()


def detected(
    found: Sequence[Mapping[str, dict[str, np.ndarray]]], seen: Mapping[str, Kind]
) -> dict[str, Any]:
    """Signal -> kind -> area under the ROC curve and calibration, over training runs."""
    usual, *kinds = seen
    sources = {
        kind: np.arange(len(of.images)) if of.sources is None else of.sources
        for kind, of in seen.items()
    }
    result: dict[str, Any] = {}
    for signal in found[0][usual]:
        result[signal] = {}
        for kind in kinds:
            one, other = sources[usual], sources[kind]
            drawn = np.concatenate([one, other + len(one)])  # a source is of one kind
            odd = np.repeat([False, True], [len(one), len(other)])
            samples = [
                Samples(np.concatenate([of[usual][signal], of[kind][signal]]), odd, drawn)
                for of in found
            ]
            even = drawn % 2 == 0  # no source in both halves
            predicted = [
                Calibration(s.signal[even], s.happened[even])(s.signal[~even]) for s in samples
            ]
            came = [s.happened[~even] for s in samples]
            true = reliability(np.concatenate(predicted), np.concatenate(came).astype(float))
            result[signal][kind] = {"auroc": auroc(samples), "reliability": true}
    return result


def draw_maps(model: EnergyImageModel, kinds: Mapping[str, Kind], path: Path) -> None:
    """Ten images of each kind, the first row noisy ones, and the energies of their patches."""
    chosen = {name: of.images[:: len(of.images) // 10][:10] for name, of in kinds.items()}
    first, clean = next(iter(chosen.items()))
    noisy = model.degrade(clean, model.shape.noise, torch.Generator().manual_seed(0))
    rows = {first: clean, "the same, noisy": noisy, **chosen}
    made = [(name, list(x), list(model.energy_map(x.to(DEVICE)).cpu())) for name, x in rows.items()]
    save_png(energy_maps(made), path)
    console.print(f"energies of patches: {path}")


def probe_table(result: Mapping[str, Any]) -> str:
    """What linear probes tell."""
    rows = [
        (
            NAMES[name],
            format_interval(of["accuracy"]["mean"], of["accuracy"]["ci95"]),
            ", ".join(map(str, of["noise"])) if "noise" in of else "",
            format_interval(of["ahead"]["diff"], of["ahead"]["ci95"], signed=True)
            if "ahead" in of
            else "",
        )
        for name, of in result["probe"].items()
    ]
    header = ("linear probe on", "accuracy", "noise on the images, by seed", "less DiT's")
    return markdown(header, rows, left=1)


def detector_table(result: Mapping[str, Any]) -> str:
    """How well each signal tells each kind of images, and whether it is calibrated."""
    kinds = list(next(iter(next(iter(result["detected"].values())).values())))
    rows = [
        (
            f"{NAMES[name]}: {signal}",
            *(format_interval(by[k]["auroc"]["mean"], by[k]["auroc"]["ci95"]) for k in kinds),
            *(f"{by[k]['reliability']['calibration_error']:.3f}" for k in kinds),
        )
        for name, signals in result["detected"].items()
        for signal, by in signals.items()
    ]
    header = ("area under the ROC curve", *kinds, *(f"calibration error, {k}" for k in kinds))
    return markdown(header, rows, left=1)


def main() -> None:
    given = settings(seeds=3, updates=3000, parallel=2, folder="runs/representation")
    folder = Path(given.folder)
    runs = {name: [*CIFAR, f"train.steps={given.updates}", *how] for name, how in MODELS.items()}
    train_all(runs, range(given.seeds), folder, given.parallel)
    models: dict[str, list[Any]] = {}
    for name in runs:
        found = matching_runs(folder / f"{name}-seed*")
        models[name] = [ImageModel.from_checkpoint(run, DEVICE) for run in found]
    first = models["ebt"][0]
    for model in models["dit"]:
        model.configure_inference(steps=DIT_STEPS)
    gallery = load_images("cifar10", None, first.shape.channels)
    every = {part: images_of(gallery, part, first) for part in ("train", "validation", "test")}
    images = {part: seen for part, (seen, _) in every.items()}
    labels = {part: of for part, (_, of) in every.items()}
    torch.manual_seed(0)
    untrained = build_image_model({**first.config, "shape": vars(first.shape)}).to(DEVICE)
    kinds = kinds_of(gallery, first)
    result: dict[str, Any] = {"probe": {}, "detected": {}}
    right: dict[str, np.ndarray] = {}
    with progress_bar() as bar:
        task = bar.add_task("probes", total=len(models) * given.seeds + 2)
        for name, several in {**models, "untrained": [untrained]}.items():
            found = []
            for model in several:
                found.append(probe_model(model, images, labels))
                bar.advance(task)
            right[name] = np.stack([one for one, _ in found])
            result["probe"][name] = {"noise": [noise for _, noise in found]}
        right["pixels"], _ = probed(lambda part: images[part].flatten(1).numpy(), labels)
        result["probe"]["pixels"] = {}
        bar.advance(task)
        task = bar.add_task("detectors", total=len(models) * given.seeds)
        for name, several in models.items():
            seen = []
            for model in several:
                seen.append({kind: oddness(model, of.images) for kind, of in kinds.items()})
                bar.advance(task)
            result["detected"][name] = detected(seen, kinds)
    plain = {kind: {"roughness": roughness(of.images)} for kind, of in kinds.items()}
    result["detected"]["pixels"] = detected([plain], kinds)
    for name, of in result["probe"].items():
        of["accuracy"] = success_rate(right[name])
        if name != "dit":
            of["ahead"] = paired_difference(right[name], right["dit"])
    result |= {
        "params": first.parameter_count, "updates": given.updates, "seeds": given.seeds,
        "left_out": list(LEFT_OUT), "device": DEVICE.type, "command": command("representation"),
    }  # fmt: skip
    draw_maps(first, kinds, folder / "energy_maps.png")
    store("representation.json", json.dumps(result, indent=1) + "\n")
    for table in (probe_table(result), detector_table(result)):
        console.print(Markdown(table))


if __name__ == "__main__":
    main()
