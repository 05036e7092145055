"""How language models scale: ``python -m ebt_policy.scaling axis=depth [seeds=3 ...]``.

Trains the energy language model, the refiner and Transformer++ at the places of an axis, each with
the learning rate that suits it there and with several seeds, as hydra multiruns of
``ebt_policy.train``, and fits how perplexity falls: rates, their ratio to Transformer++'s, and the
levels beside them, with intervals. It may be repeated after a kill.

Settings: axis (data, batch, depth, width, params or flops), seeds, models, tune (whether learning
rates are looked for, from ``train.lr``), folder (of the runs), output. All else goes to
``ebt_policy.train``, for every run: other places of the axis (``size.layers=2,4``), another text
(``task.corpus=wikitext2``), or where runs are done (``hydra/launcher=joblib
hydra.launcher.n_jobs=2``, ``hydra/launcher=submitit_slurm``).
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
import yaml
from hydra import compose, initialize_config_module
from rich.console import Console
from rich.markdown import Markdown

import ebt_policy
from ebt_policy.cli import pick_device, report_errors
from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.figure_style import save_figure
from ebt_policy.evaluation.flops import training_work
from ebt_policy.evaluation.progress import progress_bar
from ebt_policy.evaluation.scaling_law import Point, scaling_law
from ebt_policy.evaluation.tables import format_count, format_interval, markdown
from ebt_policy.io.atomic_write import atomic_write
from ebt_policy.io.output import output_folder
from ebt_policy.language.figures import scaling_lines
from ebt_policy.language.metrics import MAX_WINDOWS, held_out_surprisal, load_eval_set
from ebt_policy.language.model import TextModel

console = Console()

Cell = tuple[str, str]  # a model at a place of the axis
Names = tuple[str, ...]

# The trainer's setting that each axis moves, its places, and what is shown.
AXES = {
    "data": ("train.steps", "250,500,1000,2000,4000", "tokens of training"),
    "batch": ("train.batch_size", "2,4,8,16", "sequences in a batch"),
    "depth": ("size.layers", "1,2,4,8", "layers"),
    "width": ("size.width", "16,32,48,64", "width"),
    "params": ("size", "4xs,3xs,2xs,xs", "parameters"),
    "flops": ("size", "4xs,3xs,2xs,xs", "FLOPs of training"),
}
BASE = {
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
# What tells the runs of all axes apart, so that one serves every axis that it lies on.
NAME = (
    "${model.name}-w${size.width}-l${size.layers}-b${train.batch_size}-n${train.steps}"
    "-lr${train.lr}-seed${seed}"
)


@dataclass(frozen=True)
class Study:
    """The settings.

    Args:
        axis: what grows, one of `AXES`.
        seeds: training seeds.
        models: names, the baseline last.
        tune: whether each model has its own learning rate at each place, see `Grid.tuned`.
        folder: of the runs.
        output: of the results; default ``results/scaling-AXIS``.
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
            raise ConfigError(f"models={self.models} names one twice.")

    @property
    def names(self) -> list[str]:
        return self.models.split(",")


def parse(arguments: Sequence[str]) -> tuple[Study, dict[str, str]]:
    """The study's settings, and those of the trainer.

    Raises:
        ConfigError: an argument that is no ``name=value``, or a setting out of range.
    """
    given: dict[str, Any] = {}
    rest = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            raise ConfigError(f"write name=value, got {argument!r}.")
        if name in Study.__dataclass_fields__:
            given[name] = yaml.safe_load(value) if name in ("seeds", "tune") else value
        else:
            rest[name] = value
    if "axis" not in given:
        raise ConfigError(f"say what is to grow: axis={'|'.join(AXES)}.")
    study = options(Study, given, "the scaling study")
    name, places, _ = AXES[study.axis]
    settings = {"task": "text", **BASE, name: places, **rest}
    if name == "size":  # a size of the dial has its own layers
        settings.pop("size.layers")
    for taken in ("model", "seed", "run_dir", "resume"):
        if taken in rest:
            raise ConfigError(f"{taken}=... is what the study sets; leave it out.")
    several = [k for k, v in settings.items() if "," in v and k != name]
    if several or "," not in settings[name]:
        raise ConfigError(
            f"axis={study.axis} moves {name}, which needs several places, and nothing else"
            + (f": {several[0]} has several, too." if several else ".")
        )
    try:
        float(settings["train.lr"])
    except ValueError:
        raise ConfigError(f"train.lr must be a number, got {settings['train.lr']}.") from None
    return study, settings


class Grid:
    """The runs of a study: it trains those that are asked for, and reads their losses."""

    def __init__(self, study: Study, settings: dict[str, str], device: torch.device) -> None:
        self.study, self.settings, self.device = study, settings, device
        self.moved, _, _ = AXES[study.axis]
        self.places = settings[self.moved].split(",")
        self.cells = [(model, place) for model in study.names for place in self.places]

    def train(self, rates: Mapping[Cell, Collection[float]], seeds: Sequence[int]) -> None:
        """Runs of cells with learning rates, for all seeds, as few multiruns; what is there stays.

        Raises:
            ConfigError: one failed; it has said why.
        """
        for models, places, shared in products(rates):
            settings = self.settings | {self.moved: ",".join(places)}
            settings |= {"train.lr": ",".join(map(str, shared)), "model": ",".join(models)}
            command = [
                sys.executable, "-m", "ebt_policy.train", "--multirun",
                *(f"{name}={value}" for name, value in settings.items()),
                f"seed={','.join(map(str, seeds))}", f"run_dir={self.study.folder}/{NAME}",
                "resume=true",
            ]  # fmt: skip
            if subprocess.run(command).returncode:
                raise ConfigError("a training failed, see above; the study goes on where it was.")

    def run(self, cell: Cell, rate: float, seed: int) -> Path:
        """The folder of a run."""
        model, place = cell
        chosen = self.settings | {self.moved: place, "model": model}
        chosen |= {"train.lr": str(rate), "seed": str(seed)}
        chosen = {k: v for k, v in chosen.items() if not k.startswith("hydra")}
        overrides = [f"{k}={v}" for k, v in chosen.items()]
        with initialize_config_module("ebt_policy.configs", version_base="1.3"):
            run_dir = f"run_dir={self.study.folder}/{NAME}"
            return Path(compose("train", [*overrides, run_dir]).run_dir)

    def losses(self, run: Path, part: str) -> np.ndarray:
        """A trained run's loss on each window of a part of its text, nats; kept beside it."""
        kept = run / f"{part}.npy"
        if not kept.exists():
            model = TextModel.from_checkpoint(run, self.device)
            windows, _ = load_eval_set(model, None, self.device, part)
            found = held_out_surprisal(model, windows, MAX_WINDOWS).mean(1).numpy()
            with kept.with_suffix(".tmp").open("wb") as file:
                np.save(file, found)
            kept.with_suffix(".tmp").replace(kept)
        return np.load(kept)

    def tuned(self) -> dict[Cell, float]:
        """Each cell's learning rate: where both half and twice of it are worse, for the first seed.

        Walks from ``train.lr`` in factors of two, by the loss on the validation part.
        """
        start = float(self.settings["train.lr"])
        tried: dict[Cell, dict[float, float]] = {cell: {} for cell in self.cells}
        new = {cell: [start / 2, start, start * 2] for cell in self.cells}
        best: dict[Cell, float] = {}
        while new:
            self.train(new, [0])
            for cell, rates in new.items():
                for rate in rates:
                    found = self.losses(self.run(cell, rate, 0), "validation")
                    tried[cell][rate] = float(found.mean())
            best = {cell: min(known, key=known.__getitem__) for cell, known in tried.items()}
            beside = {cell: (rate / 2, rate * 2) for cell, rate in best.items()}
            new = {
                cell: todo
                for cell, near in beside.items()
                if (todo := [rate for rate in near if rate not in tried[cell]])
            }
        return best

    def point(self, cell: Cell, rate: float) -> Point:
        """What a cell's runs cost and reached."""
        runs = [self.run(cell, rate, seed) for seed in range(self.study.seeds)]
        losses = np.stack([self.losses(run, "test") for run in runs])
        model = TextModel.from_checkpoint(runs[0], self.device)
        trained = model.config["train"]
        batch = torch.arange(trained["batch_size"])
        windows, _ = load_eval_set(model, None, self.device, "validation")
        flops = trained["steps"] * training_work(model, windows.gather(batch % len(windows))).flops
        tokens = trained["steps"] * trained["batch_size"] * model.context
        params = model.parameter_count
        x = {"data": tokens, "params": params, "flops": flops}.get(self.study.axis)
        return Point(float(cell[1]) if x is None else x, flops, params, losses, rate)


def products(rates: Mapping[Cell, Collection[float]]) -> list[tuple[Names, Names, list[float]]]:
    """Cells and their learning rates as products of models, places and rates, which multiruns are.

    >>> products({("a", "1"): [0.1], ("a", "2"): [0.1], ("b", "1"): [0.1], ("b", "2"): [0.1, 0.2]})
    [(('a', 'b'), ('1', '2'), [0.1]), (('b',), ('2',), [0.2])]
    """
    places: dict[tuple[str, float], Names] = {}
    for (model, place), several in rates.items():
        for rate in several:
            places[model, rate] = (*places.get((model, rate), ()), place)
    models: dict[tuple[Names, float], Names] = {}
    for (model, rate), at in places.items():
        models[at, rate] = (*models.get((at, rate), ()), model)
    shared: dict[tuple[Names, Names], list[float]] = {}
    for (at, rate), names in models.items():
        shared.setdefault((names, at), []).append(rate)
    return [(names, at, several) for (names, at), several in shared.items()]


def scaling(arguments: Sequence[str]) -> dict[str, Any]:
    """Train, fit, show; returns what ``summary.json`` holds."""
    study, settings = parse(arguments)
    output = Path(study.output or f"results/scaling-{study.axis}")
    with output_folder(output, "output"):
        grid = Grid(study, settings, pick_device(settings.get("device", "auto")))
        rates = (
            grid.tuned() if study.tune else dict.fromkeys(grid.cells, float(settings["train.lr"]))
        )
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
            "settings": {k: v for k, v in settings.items() if not k.startswith("hydra")},
            "models": scaling_law(points),
            "device": grid.device.type,
            "command": " ".join(["python -m ebt_policy.scaling", *arguments]),
            "version": ebt_policy.__version__,
        }
        atomic_write(output / "summary.json", json.dumps(result, indent=1) + "\n")
        atomic_write(output / "table.md", scaling_table(result))
        save_figure(scaling_lines(result), output / "scaling.svg")
        console.print(Markdown(scaling_table(result)))
        console.print(f"results: {output}", markup=False, soft_wrap=True, highlight=False)
    return result


def scaling_table(result: dict[str, Any]) -> str:
    """Markdown: losses at each place, then rates and levels, then learning rates."""
    *_, base = result["models"]
    names = list(result["models"])

    def shown(found: dict[str, Any] | None, signed: bool = False) -> str:
        return "none" if found is None else format_interval(found["mean"], found["ci95"], signed)

    def place(points: Sequence[dict[str, Any]]) -> str:
        x = points[-1]["x"]
        return format_count(int(x) if x == int(x) else x)

    places = list(zip(*(result["models"][name]["points"] for name in names), strict=True))
    rows = [(place(at), *(shown(one["loss"]) for one in at)) for at in places]
    text = markdown((result["label"], *(f"{name}, nats" for name in names)), rows, left=1)
    rows = []
    for name, found in result["models"].items():
        against = ["", "", ""]
        if name != base:
            levels = (found["same_place"], found["equal_flops"])
            against = [shown(found["ratio"]), *(shown(level, signed=True) for level in levels)]
        rows.append((name, shown(found["rate"]), *against))
    header = ("model", "rate", "ratio", "level at each place", "level at equal FLOPs")
    text += "\n" + markdown(header, rows, left=1)
    rows = [(place(at), *(f"{one['lr']:g}" for one in at)) for at in places]
    text += "\n" + markdown((result["label"], *(f"{name}, lr" for name in names)), rows, left=1)
    text += (
        f"\nPerplexity falls as x^-rate; ratio is over {base}'s rate, levels are losses less its "
        f"own, nats. {result['seeds']} training seeds on {result['corpus']}; 95 % intervals over "
        "held-out windows and seeds.\n"
    )
    return text


def main() -> None:
    with report_errors():
        scaling(sys.argv[1:])


if __name__ == "__main__":
    main()
