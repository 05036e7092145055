"""Helpers of the command-line entries: arguments, help, devices and error messages."""

from ebt_policy.cli.arguments import command_line, hydra_arguments
from ebt_policy.cli.device import pick_device
from ebt_policy.cli.entry import Entry, run_entry
from ebt_policy.cli.reporting import report_errors

__all__ = [
    "Entry",
    "command_line",
    "hydra_arguments",
    "pick_device",
    "report_errors",
    "run_entry",
]
