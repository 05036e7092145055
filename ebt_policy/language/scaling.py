"""Scaling study of language models: train along an axis, and fit a power law to the perplexity.

`run_scaling_study` trains models at several values of an axis, as hydra multiruns of
``ebt_policy.train``. Each model has several seeds, and its own learning rate at each value. The
scaling rate of each model is compared with the rate of the last one, the baseline.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from rich.console import Console

from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.figure_style import save_figure
from ebt_policy.evaluation.flops import training_work
from ebt_policy.evaluation.progress import progress_bar
from ebt_policy.evaluation.provenance import provenance
from ebt_policy.evaluation.scaling_law import Point, scaling_law
from ebt_policy.evaluation.tables import format_count, format_interval, markdown
from ebt_policy.evaluation.terminal import print_markdown
from ebt_policy.io.atomic_write import atomic_path, atomic_write
from ebt_policy.language.figures import scaling_lines
from ebt_policy.language.metrics import MAX_WINDOWS, held_out_surprisal, load_eval_set
from ebt_policy.language.model import TextModel

console = Console()

Cell = tuple[str, str]  # a model and a value of the axis
Names = tuple[str, ...]

# The trainer's option that each axis varies, its values, and the label of the axis.
AXES = {
    "data": ("train.steps", "250,500,1000,2000,4000", "training tokens"),
    "batch": ("train.batch_size", "2,4,8,16", "sequences in a batch"),
    "depth": ("size.layers", "1,2,4,8", "layers"),
    "width": ("size.width", "16,32,48,64", "width"),
    "params": ("size", "4xs,3xs,2xs,xs", "parameters"),
    "flops": ("size", "4xs,3xs,2xs,xs", "training FLOPs"),
}
BASE_OVERRIDES = {
    "size": "2xs",
    "size.layers": "2",
    "task.tokenizer": "char",
    "task.context": "64",
    "train.batch_size": "8",
    "train.minutes": "null",
    "train.steps": "1000",
    "train.lr": "2e-3",
    "train.compile": "false",
    "train.eval_every": "0",
    "evaluation.final": "false",
}
# The name holds all options that axes vary, so that axes with a common point share its run.
RUN_NAME = (
    "${model.name}-w${size.width}-l${size.layers}-b${train.batch_size}-n${train.steps}"
    "-lr${train.lr}-seed${seed}"
)


@dataclass(frozen=True)
class ScalingConfig:
    """Options of a scaling study.

    Args:
        axis: the quantity that grows, one of `AXES`.
        seeds: number of training seeds.
        models: names of the models, separated by commas; the last one is the baseline.
        tune: whether to tune the learning rate of each model at each value of the axis (see
            `RunGrid.tune_learning_rates`).
        folder: folder of the runs.
        output: folder of the results; default ``results/scaling-AXIS``.
    """

    axis: str
    seeds: int = 3
    models: str = "ebt,refiner,transformer_pp"
    tune: bool = True
    folder: str = "runs/scaling"
    output: str | None = None

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise ConfigError(f"axis must be one of {', '.join(AXES)}, got {self.axis}.")
        if self.seeds < 1:
            raise ConfigError(f"seeds must be at least 1, got {self.seeds}.")
        if len(set(self.names)) != len(self.names):
            raise ConfigError(f"models={self.models} names a model twice; list each model once.")

    @property
    def names(self) -> list[str]:
        """Names of the models, in order."""
        return self.models.split(",")


class RunGrid:
    """The training runs of a study; trains them and measures their losses.

    A cell of the grid is a model and a value ("place") of the axis.

    Args:
        study: options of the study.
        overrides: overrides of ``ebt_policy.train`` for all runs.
        device: device on which losses are measured.
    """

    def __init__(
        self, study: ScalingConfig, overrides: dict[str, str], device: torch.device
    ) -> None:
        self.study, self.overrides, self.device = study, overrides, device
        self.axis_option, _, _ = AXES[study.axis]
        self.places = overrides[self.axis_option].split(",")
        self.cells = [(model, place) for model in study.names for place in self.places]

    def train(self, rates: Mapping[Cell, Collection[float]], seeds: Sequence[int]) -> None:
        """Train cells with learning rates and seeds, in few multiruns; finished runs are skipped.

        Args:
            rates: learning rates of each cell.
            seeds: training seeds.

        Raises:
            ConfigError: a training run failed, after it has printed its own error.
        """
        for models, places, shared in multirun_products(rates):
            overrides = self.overrides | {self.axis_option: ",".join(places)}
            overrides |= {"train.lr": ",".join(map(str, shared)), "model": ",".join(models)}
            command = [
                sys.executable, "-m", "ebt_policy.train", "--multirun",
                *(f"{name}={value}" for name, value in overrides.items()),
                f"seed={','.join(map(str, seeds))}", f"run_dir={self.study.folder}/{RUN_NAME}",
                "resume=true",
            ]  # fmt: skip
            if subprocess.run(command).returncode:
                raise ConfigError(
                    "a training run failed, see above; run the same command again to resume."
                )

    def run(self, cell: Cell, rate: float, seed: int) -> Path:
        """Return the folder of a run."""
        model, place = cell
        values = self.overrides | {self.axis_option: place, "model": model}
        values |= {"train.lr": str(rate), "seed": str(seed)}
        overrides = [f"{k}={v}" for k, v in values.items() if not k.startswith("hydra")]
        with initialize_config_module("ebt_policy.configs", version_base="1.3"):
            run_dir = f"run_dir={self.study.folder}/{RUN_NAME}"
            return Path(compose("train", [*overrides, run_dir]).run_dir)

    def losses(self, run: Path, split: str) -> np.ndarray:
        """Return a run's loss, in nats, on each window of a split; cached in the run's folder."""
        cache = run / f"{split}.npy"
        if not cache.exists():
            model = TextModel.from_checkpoint(run, self.device)
            windows = load_eval_set(model, None, self.device, split).windows
            losses = held_out_surprisal(model, windows, MAX_WINDOWS).mean(1).numpy()
            with atomic_path(cache) as temporary:
                np.save(temporary, losses)
        return np.load(cache)

    def tune_learning_rates(self) -> dict[Cell, float]:
        """Return a learning rate for each cell that is better than half and twice its value.

        The search starts at ``train.lr`` and moves in factors of two. It compares the validation
        losses of the first seed.
        """
        start = float(self.overrides["train.lr"])
        results: dict[Cell, dict[float, float]] = {cell: {} for cell in self.cells}
        pending = {cell: [start / 2, start, start * 2] for cell in self.cells}
        best: dict[Cell, float] = {}
        while pending:
            self.train(pending, [0])
            for cell, rates in pending.items():
                for rate in rates:
                    losses = self.losses(self.run(cell, rate, 0), "validation")
                    results[cell][rate] = float(losses.mean())
            best = {cell: min(losses, key=losses.__getitem__) for cell, losses in results.items()}
            neighbours = {cell: (rate / 2, rate * 2) for cell, rate in best.items()}
            pending = {
                cell: untested
                for cell, candidates in neighbours.items()
                if (untested := [rate for rate in candidates if rate not in results[cell]])
            }
        return best

    def point(self, cell: Cell, rate: float) -> Point:
        """Return the compute and the test losses of a cell's runs."""
        runs = [self.run(cell, rate, seed) for seed in range(self.study.seeds)]
        losses = np.stack([self.losses(run, "test") for run in runs])
        model = TextModel.from_checkpoint(runs[0], self.device)
        trained = model.config["train"]
        batch = torch.arange(trained["batch_size"])
        windows = load_eval_set(model, None, self.device, "validation").windows
        flops = trained["steps"] * training_work(model, windows.gather(batch % len(windows))).flops
        tokens = trained["steps"] * trained["batch_size"] * model.context
        params = model.parameter_count
        x = {"data": tokens, "params": params, "flops": flops}.get(self.study.axis)
        return Point(float(cell[1]) if x is None else x, flops, params, losses, rate)


def multirun_products(
    rates: Mapping[Cell, Collection[float]],
) -> list[tuple[Names, Names, list[float]]]:
    """Group cells and their learning rates into products of models, axis values and rates.

    Each product is one multirun.

    >>> rates = {("a", "1"): [0.1], ("a", "2"): [0.1], ("b", "1"): [0.1], ("b", "2"): [0.1, 0.2]}
    >>> multirun_products(rates)
    [(('a', 'b'), ('1', '2'), [0.1]), (('b',), ('2',), [0.2])]
    """
    places: dict[tuple[str, float], Names] = {}
    for (model, place), cell_rates in rates.items():
        for rate in cell_rates:
            places[model, rate] = (*places.get((model, rate), ()), place)
    models: dict[tuple[Names, float], Names] = {}
    for (model, rate), axis_values in places.items():
        models[axis_values, rate] = (*models.get((axis_values, rate), ()), model)
    shared: dict[tuple[Names, Names], list[float]] = {}
    for (axis_values, rate), names in models.items():
        shared.setdefault((names, axis_values), []).append(rate)
    return [(names, values, product_rates) for (names, values), product_rates in shared.items()]


def run_scaling_study(
    study: ScalingConfig, overrides: dict[str, str], output: Path, device: torch.device,
    command: str,
) -> dict[str, Any]:  # fmt: skip
    """Train all runs, fit the scaling laws and write a report.

    Args:
        study: options of the study.
        overrides: overrides of ``ebt_policy.train`` for all runs.
        output: existing folder of the results.
        device: device on which losses are measured.
        command: the command line as typed, stored with the results.

    Returns:
        The content of ``summary.json``.
    """
    grid = RunGrid(study, overrides, device)
    rates = dict.fromkeys(grid.cells, float(overrides["train.lr"]))
    if study.tune:
        rates = grid.tune_learning_rates()
    grid.train({cell: [rate] for cell, rate in rates.items()}, range(study.seeds))
    points: dict[str, list[Point]] = {name: [] for name in study.names}
    with progress_bar() as bar:
        task = bar.add_task("held-out text", total=len(rates))
        for cell, rate in rates.items():
            points[cell[0]].append(grid.point(cell, rate))
            bar.advance(task)
    text = TextModel.from_checkpoint(grid.run(*next(iter(rates.items())), 0)).config["task"]
    result = {
        "axis": study.axis,
        "label": AXES[study.axis][2],
        "corpus": text["corpus"] or text["path"],
        "seeds": study.seeds,
        "settings": {k: v for k, v in overrides.items() if not k.startswith("hydra")},
        "models": scaling_law(points),
        "device": device.type,
        "command": command,
        **provenance(),
    }
    table = scaling_table(result)
    atomic_write(output / "summary.json", json.dumps(result, indent=1) + "\n")
    atomic_write(output / "table.md", table)
    save_figure(scaling_lines(result), output / "scaling.svg")
    print_markdown(table, console)
    console.print(f"results: {output}", markup=False, soft_wrap=True, highlight=False)
    return result


def scaling_table(result: dict[str, Any]) -> str:
    """Return Markdown tables: losses at each value of the axis, scaling rates, learning rates."""
    *_, base = result["models"]
    names = list(result["models"])

    def cell(estimate: dict[str, Any] | None, signed: bool = False) -> str:
        if estimate is None:
            return "none"
        return format_interval(estimate["mean"], estimate["ci95"], signed)

    def place(points: Sequence[dict[str, Any]]) -> str:
        x = points[-1]["x"]
        return format_count(int(x) if x == int(x) else x)

    places = list(zip(*(result["models"][name]["points"] for name in names), strict=True))
    rows = [(place(points), *(cell(point["loss"]) for point in points)) for points in places]
    text = markdown((result["label"], *(f"{name}, nats" for name in names)), rows, left=1)
    rows = []
    for name, model in result["models"].items():
        against = ["", "", ""]
        if name != base:
            levels = (model["same_place"], model["equal_flops"])
            against = [cell(model["ratio"]), *(cell(level, signed=True) for level in levels)]
        rows.append((name, cell(model["rate"]), *against))
    header = ("model", "rate", "ratio", "mean difference over points", "difference at equal FLOPs")
    text += "\n" + markdown(header, rows, left=1)
    rows = [(place(points), *(f"{point['lr']:g}" for point in points)) for points in places]
    text += "\n" + markdown((result["label"], *(f"{name}, lr" for name in names)), rows, left=1)
    text += (
        f"\nPerplexity falls as x^-rate. Ratios are to the rate of {base}. Differences are from "
        f"the loss of {base}, in nats. {result['seeds']} training seeds on {result['corpus']}; "
        "95 % intervals over held-out windows and seeds.\n"
    )
    return text
