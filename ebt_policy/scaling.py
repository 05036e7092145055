"""Study how language models scale: ``python -m ebt_policy.scaling axis=depth [seeds=3 ...]``.

Trains the energy language model, the refiner and Transformer++ at several values of an axis. Each
model has a tuned learning rate at each value, and several seeds. The runs are hydra multiruns of
``ebt_policy.train``. The study fits how the perplexity falls along the axis. It reports scaling
rates, their ratio to the rate of Transformer++, and differences of the loss, with intervals. Run
the same command again to resume.

Options: axis (data, batch, depth, width, params or flops), seeds, models, tune (whether learning
rates are tuned, starting from ``train.lr``), folder (for the runs), output. All other options go to
every run of ``ebt_policy.train``: for example, other values of the axis (``size.layers=2,4``),
another text (``task.corpus=wikitext2``) or a launcher (``hydra/launcher=joblib
hydra.launcher.n_jobs=2``, ``hydra/launcher=submitit_slurm``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ebt_policy.cli import pick_device, report_errors
from ebt_policy.cli.help import print_usage
from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.io.output import output_folder
from ebt_policy.language.scaling import AXES, BASE_OVERRIDES, ScalingConfig, run_scaling_study


def parse(arguments: Sequence[str]) -> tuple[ScalingConfig, dict[str, str]]:
    """Return the options of the study, and the overrides of its training runs.

    Raises:
        ConfigError: if an argument is not ``name=value``, or a value is not allowed.
    """
    section: dict[str, Any] = {}
    trainer = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            raise ConfigError(f"write name=value, got {argument!r}.")
        if name in ScalingConfig.__dataclass_fields__:
            section[name] = yaml.safe_load(value) if name in ("seeds", "tune") else value
        else:
            trainer[name] = value
    if "axis" not in section:
        raise ConfigError(f"missing required option axis={'|'.join(AXES)}.")
    study = options(ScalingConfig, section, "the scaling study")
    name, places, _ = AXES[study.axis]
    overrides = {"task": "text", **BASE_OVERRIDES, name: places, **trainer}
    if name == "size":  # a named size has its own number of layers
        overrides.pop("size.layers")
    for reserved in ("model", "seed", "run_dir", "resume"):
        if reserved in trainer:
            raise ConfigError(f"{reserved}=... is set by the study; leave it out.")
    several = [k for k, v in overrides.items() if "," in v and k != name]
    if several or "," not in overrides[name]:
        raise ConfigError(
            f"axis={study.axis} needs several values of {name}, and one value of all other options"
            + (f"; {several[0]} has several." if several else ".")
        )
    try:
        float(overrides["train.lr"])
    except ValueError:
        raise ConfigError(f"train.lr must be a number, got {overrides['train.lr']}.") from None
    return study, overrides


def scaling(arguments: Sequence[str]) -> dict[str, Any]:
    """Run the study that the arguments describe; return the content of ``summary.json``."""
    study, overrides = parse(arguments)
    output = Path(study.output or f"results/scaling-{study.axis}")
    command = " ".join(["python -m ebt_policy.scaling", *arguments])
    with output_folder(output, "output"):
        device = pick_device(overrides.get("device", "auto"))
        return run_scaling_study(study, overrides, output, device, command)


def main() -> None:
    """Run the command line."""
    if print_usage(sys.argv[1:], "ebt-scale axis=AXIS [OPTION=VALUE ...]", __doc__):
        return
    with report_errors():
        scaling(sys.argv[1:])


if __name__ == "__main__":
    main()
