"""Helpers of the command-line entries: arguments, devices, and errors as one sentence."""

from ebt_policy.cli.arguments import command_line, hydra_arguments, run_entry
from ebt_policy.cli.device import pick_device
from ebt_policy.cli.reporting import report_errors

__all__ = ["command_line", "hydra_arguments", "pick_device", "report_errors", "run_entry"]
