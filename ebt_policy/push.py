"""Publish a policy on the Hugging Face Hub: ``python -m ebt_policy.push checkpoint=RUN repo=NAME``.

The repository gets the weights, the configuration and a generated model card.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ebt_policy.cli import Entry, run_entry
from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.io.atomic_write import atomic_folder
from ebt_policy.io.hub import is_repository_name
from ebt_policy.io.output import writable_folder

console = Console()


@dataclass(frozen=True)
class PushConfig:
    """The options of ``configs/push.yaml``, which describes them."""

    checkpoint: str | None
    repo: str | None
    licence: str | None
    units: str | None
    private: bool
    output: str | None


def run(config: dict[str, Any]) -> None:
    """Write the files of the repository, and upload them unless ``output`` is given.

    Raises:
        UserError: an option is missing, or the policy cannot be read or uploaded.
    """
    settings = options(PushConfig, config, "the configuration")
    for name, value in (("checkpoint", "RUN"), ("repo", "USER/NAME"), ("licence", "mit")):
        if not getattr(settings, name):
            raise ConfigError(f"missing required option {name}={value}.")
    repo = str(settings.repo)
    if not is_repository_name(repo):
        raise ConfigError(f"repo must be USER/NAME, got {repo}.")
    output = Path(settings.output) if settings.output else None
    if output is not None and output.exists():
        raise ConfigError(f"output={output} exists; give a new folder.")

    from ebt_policy.policies import hub_upload  # slow to import

    def write(folder: Path) -> None:
        hub_upload.write_hub_folder(
            str(settings.checkpoint), folder, repo,
            licence=str(settings.licence), units=settings.units,
        )  # fmt: skip

    if output is not None:
        with writable_folder(output.parent, "output"), atomic_folder(output) as folder:
            write(folder)
        console.print(f"{output}: nothing was uploaded", markup=False, soft_wrap=True)
        return
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary))
        address = hub_upload.push_to_hub(Path(temporary), repo, private=settings.private)
    console.print(address, markup=False, soft_wrap=True)


def main() -> None:
    """Run the command line."""
    run_entry(
        Entry(
            "ebt-push",
            "push",
            "Publish a policy on the Hugging Face Hub, with a generated model card.",
            (
                "checkpoint=runs/push_t/ebt-xs-seed0 repo=me/push_t licence=mit",
                "checkpoint=runs/arm repo=me/arm licence=cc-by-4.0 units='rad, gripper 0 to 1'",
                "checkpoint=runs/arm repo=me/arm licence=mit output=card  # only write the files",
            ),
            lambda config, _overrides: run(config),
        )
    )


if __name__ == "__main__":
    main()
