"""Tables of image models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.tables.cells import Result, difference, interval, label_of
from ebt_policy.evaluation.tables import format_estimate, markdown

DENOISER_NAMES = {
    "ebt": "energy, System 1",
    "ebt_s2": "energy, System 2",
    "ebt_all_levels": "energy, trained on noise up to 2x",
    "refiner": "refiner, no energy",
    "dit": "DiT, as in the paper",
    "dit_wide": "DiT, trained on noise up to 2x, noise-conditioned",
}
HEADLINE = {  # model -> numbers of passes, in the README
    "ebt": (2,), "ebt_all_levels": (3,), "refiner": (2,), "dit": (1,), "dit_wide": (1,),
}  # fmt: skip
MEASURES = {  # metric -> title, digits
    "psnr": ("PSNR at training noise, dB", 2),
    "mse": ("MSE at training noise", 1),
    "psnr_double": ("PSNR at twice the noise, dB", 2),
    "mse_double": ("MSE at twice the noise", 1),
}
GENERATOR_NAMES = {
    "ebt": "energy, equilibrium", "refiner": "refiner, no energy", "dit": "DiT, DDIM",
}  # fmt: skip
REPRESENTATION_NAMES = {
    "ebt": "energy", "refiner": "refiner, no energy", "dit": "DiT", "untrained": "untrained",
    "pixels": "pixels",
}  # fmt: skip
SPEED_MODELS = ("energy", "refiner", "DiT")


def denoising(
    result: Result,
    chosen: Mapping[str, Sequence[int]] | None = None,
    measures: Sequence[str] = tuple(MEASURES),
) -> str:
    """Return a table of denoising metrics at both noise levels.

    Args:
        result: result of a denoising study.
        chosen: model -> numbers of passes to show; None for all.
        measures: keys of `MEASURES` to show.
    """
    rows = []
    entries = sorted(result["entries"], key=lambda entry: entry["steps"])
    for name, title in DENOISER_NAMES.items():
        for entry in entries:
            if entry["name"].partition("-seed")[0] != name:
                continue
            if chosen is None or entry["steps"] in chosen.get(name, ()):
                cells = (format_estimate(entry[key], MEASURES[key][1]) for key in measures)
                rows.append((title, f"{entry['params']:,}", str(entry["steps"]), *cells))
    bm3d = (format_estimate(result["bm3d"][key], MEASURES[key][1]) for key in measures)
    rows.append(("BM3D, known noise level", "", "", *bm3d))
    titles = (MEASURES[key][0] for key in measures)
    return markdown(("model", "parameters", "passes", *titles), rows, left=1)


def denoising_headline(result: Result) -> str:
    """Return a table of PSNR for a few models and numbers of passes."""
    return denoising(result, HEADLINE, ("psnr", "psnr_double"))


def generation(result: Result) -> str:
    """Return a table of distances and accuracies by number of passes."""
    rows = [
        (
            GENERATOR_NAMES[entry["model"]],
            str(entry["steps"]),
            f"{np.mean(entry['distance']):.2f} [{min(entry['distance']):.2f}, "
            f"{max(entry['distance']):.2f}]",
            interval(entry["accuracy"]),
        )
        for entry in result["entries"]
    ]
    real = result["real"]
    rows.append(("other real images", "", f"{real['distance']:.2f}", f"{real['accuracy']:.2f}"))
    header = (
        "model",
        "passes",
        "Fréchet distance [range over seeds]",
        "classified correctly",
    )
    return markdown(header, rows, left=1)


def representation(result: Result) -> str:
    """Return the tables of probes and detectors."""
    return f"{probes(result)}\n{detectors(result)}"


def probes(result: Result) -> str:
    """Return a table of the accuracies of linear probes."""
    rows = [
        (
            REPRESENTATION_NAMES[name],
            interval(probe["accuracy"]),
            ", ".join(map(str, probe["noise"])) if "noise" in probe else "",
            difference(probe["ahead"]) if "ahead" in probe else "",
        )
        for name, probe in result["probe"].items()
    ]
    header = ("linear probe on", "accuracy", "noise level, by seed", "difference from DiT")
    return markdown(header, rows, left=1)


def detectors(result: Result) -> str:
    """Return a table of how well each signal detects each group of images, and its calibration."""
    groups = list(next(iter(next(iter(result["detected"].values())).values())))
    rows = [
        (
            f"{REPRESENTATION_NAMES[name]}: {signal}",
            *(interval(by_group[k]["auroc"]) for k in groups),
            *(f"{by_group[k]['reliability']['calibration_error']:.3f}" for k in groups),
        )
        for name, signals in result["detected"].items()
        for signal, by_group in signals.items()
    ]
    labels = [label_of(k) for k in groups]
    header = ("area under the ROC curve", *labels, *(f"calibration error, {k}" for k in labels))
    return markdown(header, rows, left=1)


def speed(result: Result) -> str:
    """Return a table of durations in ms, their ratios to DiT, and images per second."""
    ms, rows = result["ms"], []
    passes = sorted({int(key.split(", ")[1].split()[0]) for key in ms if " passes, " in key})
    timed = {"update, eager": 1, "update, compiled": 1, f"{passes[-1]} passes, eager": passes[-1]}
    for job, count in timed.items():
        times = {name: ms[f"{name}, {job}"] / count for name in SPEED_MODELS}
        ratios = (f"{time:.1f} ms ({time / times['DiT']:.2f}x)" for time in times.values())
        rows.append((job if count == 1 else "pass, eager", *ratios))
    for count in passes:
        rates = [1e3 * result["batch"] / ms[f"{name}, {count} passes, eager"]
                 for name in SPEED_MODELS]  # fmt: skip
        rows.append((f"images per second, passes: {count}", *(f"{rate:,.0f}" for rate in rates)))
    return markdown((f"batch of {result['batch']}", *SPEED_MODELS), rows, left=1)
