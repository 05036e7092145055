"""Compose policies: ``python -m ebt_policy.compose checkpoint=A checkpoint=B output=FOLDER``.

The result is a checkpoint with a product (see `ebt_policy.policies.products`) or a mixture (see
`ebt_policy.policies.mixtures`) of the policies. It is evaluated and run on a robot like any other
checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from ebt_policy.cli import Entry, run_entry
from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.io.atomic_write import atomic_folder
from ebt_policy.io.output import writable_folder

console = Console()


@dataclass(frozen=True)
class ComposeConfig:
    """The options of ``configs/compose.yaml``, which describes them."""

    checkpoint: list[str] | str | None
    composition: Literal["product", "mixture"]
    weights: list[float] | None
    output: str | None


def run(config: dict[str, Any]) -> None:
    """Compose policies as configured and write the checkpoint.

    Raises:
        UserError: an option is missing, or the policies do not fit together.
    """
    settings = options(ComposeConfig, config, "the configuration")
    paths = [settings.checkpoint] if isinstance(settings.checkpoint, str) else settings.checkpoint
    for name, value in (
        ("checkpoint=RUN (twice or more)", paths),
        ("output=FOLDER", settings.output),
    ):
        if not value:
            raise ConfigError(f"missing required option {name}.")
    folder = Path(str(settings.output))
    if folder.exists():
        raise ConfigError(f"output={folder} exists; give a new folder.")

    if settings.composition not in ("product", "mixture"):
        raise ConfigError(f"composition must be product or mixture, got {settings.composition}.")

    from ebt_policy.policies import load_policy, mixture, product  # slow to import

    compose = product if settings.composition == "product" else mixture
    policy = compose([load_policy(path) for path in paths or ()], settings.weights)
    with writable_folder(folder.parent, "output"), atomic_folder(folder) as temporary:
        policy.save(temporary)
    console.print(
        f"{folder}: {policy.name} of {len(policy.weights)} policies, {policy.parameter_count:,} "
        "parameters", markup=False, soft_wrap=True,
    )  # fmt: skip


def main() -> None:
    """Run the command line."""
    run_entry(
        Entry(
            "ebt-compose",
            "compose",
            "Write a checkpoint with the product or the mixture of several policies.",
            (
                "checkpoint=runs/a checkpoint=runs/b output=runs/product",
                "checkpoint=runs/a checkpoint=runs/b composition=mixture output=runs/mixture",
                "checkpoint=runs/a checkpoint=runs/b weights=[1.5,-0.5] output=runs/a_not_b",
            ),
            lambda config, _overrides: run(config),
            repeated=("checkpoint",),
        )
    )


if __name__ == "__main__":
    main()
