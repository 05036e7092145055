"""Export a policy for programs without Python: ``python -m ebt_policy.export checkpoint=RUN``.

See docs/how_to/export.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ebt_policy.cli import Entry, pick_device, run_entry
from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.io.output import writable_folder

console = Console(highlight=False, soft_wrap=True, markup=False)


@dataclass(frozen=True)
class ExportConfig:
    """The options of ``configs/export.yaml``, which describes them."""

    checkpoint: str | None
    format: str
    output: str | None
    device: str


def run(config: dict[str, Any]) -> None:
    """Export a policy, compare it with the policy, and print its latency.

    Raises:
        UserError: an option is invalid, a package is missing, or the policy cannot be exported.
    """
    settings = options(ExportConfig, config, "the configuration")
    if not settings.checkpoint:
        raise ConfigError("missing required option checkpoint=RUN.")
    from ebt_policy.real_robot import exported_policy as exported  # slow to import

    if settings.format not in list(exported.ExportFormat):
        formats = ", ".join(exported.ExportFormat)
        raise ConfigError(f"format must be one of {formats}, got {settings.format}.")
    export_format = exported.ExportFormat(settings.format)
    export_format.check_packages()
    device = pick_device(settings.device)
    if export_format is exported.ExportFormat.ONNX and device.type != "cpu":
        raise ConfigError(f"format=onnx needs device=cpu, got {settings.device}.")

    from ebt_policy.evaluation.results_folder import folder_name
    from ebt_policy.policies.entries import load_single_entry
    from ebt_policy.real_robot.policy_program import PolicyProgram

    entry = load_single_entry(settings.checkpoint, device)
    name = folder_name(settings.checkpoint)
    file = Path(settings.output or Path("exports") / f"{name}{export_format.suffix}")
    suffix = export_format.suffix
    if file.suffix != suffix:
        raise ConfigError(f"output must end in {suffix} for format={export_format}, got {file}.")
    if file.exists():
        raise ConfigError(f"output={file} exists; give a new file.")
    program = PolicyProgram(entry.model.requires_grad_(False))
    with writable_folder(file.parent, "output"):
        console.print(f"exporting {entry.name}; this takes one to three minutes")
        difference = exported.export_program(program, file, export_format)
    inputs = program.example()
    before, after = (
        exported.median_latency_ms(f, inputs) for f in (program, exported.load_program(file))
    )
    console.print(
        f"{file}: {after:.1f} ms for a chunk ({before:.1f} ms before), difference {difference:.0e} "
        "of the range of the actions"
    )


def main() -> None:
    """Run the command line."""
    run_entry(
        Entry(
            "ebt-export",
            "export",
            "Export a policy as an ONNX or AOTInductor program, for robots without Python.",
            (
                "checkpoint=pretrained:push_t",
                "checkpoint=runs/push_t/ebt-xs-seed0@steps=2,num_candidates=8 format=aoti",
                "checkpoint=runs/arm format=aoti device=cuda output=arm.pt2",
            ),
            lambda config, _overrides: run(config),
        )
    )


if __name__ == "__main__":
    main()
