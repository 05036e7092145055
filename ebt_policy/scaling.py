"""How language models scale: ``python -m ebt_policy.scaling axis=depth [seeds=3 ...]``.

Trains the energy language model, the refiner and Transformer++ at the places of an axis with
several seeds, as one hydra multirun of ``ebt_policy.train``, and fits how perplexity falls: rates,
their ratio to Transformer++'s, and the levels beside them, with intervals. It may be repeated
after a kill.

Settings: axis (data, batch, depth, width, params or flops), seeds, models, folder (of the runs),
output. All else goes to ``ebt_policy.train``, for every run: other places of the axis
(``size.layers=2,4``), another text (``task.corpus=wikitext2``), or where runs are done
(``hydra/launcher=joblib hydra.launcher.n_jobs=2``, ``hydra/launcher=submitit_slurm``).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markdown import Markdown
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import ebt_policy
from ebt_policy.data.text import TokenWindows
from ebt_policy.entry import pick_device, report_errors
from ebt_policy.evaluation.held_out import MOST, held_out, held_out_surprisal
from ebt_policy.evaluation.protocol import progress_bar
from ebt_policy.evaluation.scaling_law import Point, scaling_law
from ebt_policy.evaluation.study_figures import save_figure, scaling_lines
from ebt_policy.evaluation.summary import format_count, format_interval, markdown, write_atomic
from ebt_policy.models.text import TextModel
from ebt_policy.options import ConfigError, options

console = Console()

# The trainer's setting that each axis moves, its places, and what is shown.
AXES = {
    "data": ("train.steps", "250,500,1000,2000", "tokens of training"),
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
    "train.rollout_every": "0",
    "evaluation.final": "false",
}
# What tells the runs of all axes apart, so that one serves every axis that it lies on.
NAME = (
    "${model.name}-w${size.width}-l${size.layers}-b${train.batch_size}-n${train.steps}-seed${seed}"
)


@dataclass(frozen=True)
class Study:
    """The settings.

    Args:
        axis: what grows, one of `AXES`.
        seeds: training seeds.
        models: names, the baseline last.
        folder: of the runs.
        output: of the results; default ``results/scaling-AXIS``.
    """

    axis: str
    seeds: int = 3
    models: str = "ebt,refiner,transformer_pp"
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
            given[name] = int(value) if name == "seeds" and value.isdigit() else value
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
    return study, settings


def train_all(study: Study, settings: dict[str, str]) -> None:
    """All runs, or what is missing of them.

    Raises:
        ConfigError: one failed; it has said why.
    """
    seeds = ",".join(map(str, range(study.seeds)))
    command = [
        sys.executable, "-m", "ebt_policy.train", "--multirun",
        *(f"{name}={value}" for name, value in settings.items()),
        f"model={study.models}", f"seed={seeds}", f"run_dir={study.folder}/{NAME}", "resume=true",
    ]  # fmt: skip
    if subprocess.run(command).returncode:
        raise ConfigError("a training failed, see above; the study goes on where it was.")


def runs_of(study: Study, settings: dict[str, str]) -> Iterator[tuple[str, str, list[Path]]]:
    """Each model, each place, and the runs of all seeds there."""
    from hydra import compose, initialize_config_module

    from ebt_policy.train import of_its_kind

    moved, _, _ = AXES[study.axis]
    with initialize_config_module("configs", version_base="1.3"):
        for model in study.names:
            for place in settings[moved].split(","):
                runs = []
                for seed in range(study.seeds):
                    chosen = {**settings, moved: place, "model": model, "seed": str(seed)}
                    chosen = {k: v for k, v in chosen.items() if not k.startswith("hydra")}
                    _, name, *overrides = of_its_kind([f"{k}={v}" for k, v in chosen.items()])
                    overrides.append(f"run_dir={study.folder}/{NAME}")
                    runs.append(Path(compose(name, overrides).run_dir))
                yield model, place, runs


class _FlopCounter(TorchDispatchMode):
    """Torch's own counter follows modules, which a gradient inside the loss does not let it."""

    flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


def training_flops(model: TextModel, windows: TokenWindows) -> float:
    """FLOPs of one training update: those of all matrix products, counted while it runs."""
    size = model.config["train"]["batch_size"]
    batch = model.draw(windows.gather(torch.arange(size) % len(windows)))
    model.requires_grad_()
    with _FlopCounter() as counter, sdpa_kernel(SDPBackend.MATH):
        model(batch)[0].backward()
    return counter.flops


def point(study: Study, place: str, runs: Sequence[Path], device: torch.device) -> Point:
    """What some runs' held-out loss and training were; losses are kept beside the runs."""
    losses = []
    for run in runs:
        model = TextModel.from_checkpoint(run, device)
        windows, _ = held_out(model, None, device)
        kept = run / "held_out.npy"
        if not kept.exists():
            found = held_out_surprisal(model, windows, MOST).mean(1).numpy()
            with kept.with_suffix(".tmp").open("wb") as file:
                np.save(file, found)
            kept.with_suffix(".tmp").replace(kept)
        losses.append(np.load(kept))
    trained = model.config["train"]
    flops = trained["steps"] * training_flops(model, windows)
    tokens = trained["steps"] * trained["batch_size"] * model.context
    params = model.parameter_count
    x = {"data": tokens, "params": params, "flops": flops}.get(study.axis)
    return Point(float(place) if x is None else x, flops, params, np.stack(losses))


def scaling(arguments: Sequence[str]) -> dict[str, Any]:
    """Train, fit, show; returns what ``summary.json`` holds."""
    study, settings = parse(arguments)
    device = pick_device(settings.get("device", "auto"))
    train_all(study, settings)
    points: dict[str, list[Point]] = {name: [] for name in study.names}
    with progress_bar() as bar:
        todo = list(runs_of(study, settings))
        task = bar.add_task("held-out text", total=len(todo))
        for name, place, runs in todo:
            points[name].append(point(study, place, runs, device))
            bar.advance(task)
    text = TextModel.from_checkpoint(todo[0][2][0]).config["task"]
    result = {
        "axis": study.axis,
        "label": AXES[study.axis][2],
        "corpus": text["corpus"] or text["path"],
        "seeds": study.seeds,
        "settings": {k: v for k, v in settings.items() if not k.startswith("hydra")},
        "models": scaling_law(points),
        "device": device.type,
        "command": " ".join(["python -m ebt_policy.scaling", *arguments]),
        "version": ebt_policy.__version__,
    }
    output = Path(study.output or f"results/scaling-{study.axis}")
    output.mkdir(parents=True, exist_ok=True)
    write_atomic(output / "summary.json", json.dumps(result, indent=1) + "\n")
    write_atomic(output / "table.md", scaling_table(result))
    save_figure(scaling_lines(result), output / "scaling.svg")
    console.print(Markdown(scaling_table(result)))
    console.print(f"results: {output}", markup=False, soft_wrap=True, highlight=False)
    return result


def scaling_table(result: dict[str, Any]) -> str:
    """Markdown: losses at each place, then rates and levels."""
    *_, base = result["models"]
    names = list(result["models"])

    def shown(found: dict[str, Any] | None, signed: bool = False) -> str:
        return "none" if found is None else format_interval(found["mean"], found["ci95"], signed)

    rows = []
    for at in zip(*(result["models"][name]["points"] for name in names), strict=True):
        x = at[-1]["x"]
        rows.append(
            (format_count(int(x) if x == int(x) else x), *(shown(one["loss"]) for one in at))
        )
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
