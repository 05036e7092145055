"""Renamed options: for the error that names the new option, and to read old checkpoints.

The table is also in CHANGELOG.md. Entries stay for one release.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ebt_policy.errors import ConfigError

# (section as the user types it, old option) -> new option.
RENAMED_OPTIONS: dict[tuple[str, str], str] = {
    ("", "wandb"): "tracker",
    ("", "footage"): "video_dataset",  # of eval; videos= is the number of recorded episodes
    ("task", "max_prefix"): "max_prefix_len",
    ("shape", "max_prefix"): "max_prefix_len",  # of a policy's checkpoint
    ("train", "rollout_every"): "eval_every",
    ("task", "noise"): "max_noise_level",
    ("shape", "noise"): "max_noise_level",  # of an image model's checkpoint
    ("task", "leave_out"): "exclude_classes",
    ("task", "skip_damaged"): "skip_unreadable",
    ("task", "every"): "frame_stride",
    ("vision", "shrink"): "downsample",
    ("model.inference", "spread"): "noise_std",
    ("model.inference", "shrink"): "noise_decay",
    ("objective", "start"): "init_std",
    ("objective", "told"): "step_conditioned",
    ("objective", "corrupted"): "corrupted_init_fraction",
    ("objective", "fade"): "decay_width",
    ("objective", "samples"): "noise_samples_per_target",
    ("objective", "level"): "condition_on_noise_level",
    ("model", "masked"): "mask_ratio",
    ("model", "guess_layers"): "candidate_layers",
    ("model.inference", "candidates"): "num_candidates",
    ("model.inference", "level"): "scoring_level",
    ("model.inference", "only_down"): "reject_energy_increase",
    ("model.inference", "stop_change"): "straightness_tol",
    ("model.inference", "told"): "start_at_noise_level",
    ("model.inference", "warm_level"): "warm_start_level",
    ("model.inference", "warm_steps"): "warm_start_steps",
    ("execution", "wait"): "max_wait_fraction",
    ("execution", "surprise"): "max_plan_inconsistency",
    ("robot.watch", "clamps"): "max_consecutive_clamped_ticks",
    ("robot.limits", "lead"): "max_tracking_error",
}

# (section, option, old value) -> new value; the section is "" for groups such as objective=.
RENAMED_VALUES: dict[tuple[str, str, str], str] = {
    ("", "objective", "corrupted"): "s1_corrupted",
    ("model.inference", "select", "drop"): "energy_decrease",
    ("execution", "mode", "frozen"): "rtc",
    ("", "tracker", "online"): "wandb",
    ("", "tracker", "offline"): "wandb",  # with WANDB_MODE=offline
    ("", "keep", "solved"): "successful",
    ("", "mode", "dry"): "dry_run",
}


def check_renamed_argument(argument: str) -> None:
    """Raise an error if an override of the command line uses an old name.

    Args:
        argument: override, such as ``objective.fade=0.2`` or ``objective=corrupted``.

    Raises:
        ConfigError: if the option or its value was renamed; the message has the new name.
    """
    option, equals, value = argument.partition("=")
    if not equals:
        return
    option = option.lstrip("+~")
    section, _, name = option.rpartition(".")
    if new := renamed_to(section, name):
        option_now = f"{section}.{new}" if section else new
        value_now = RENAMED_VALUES.get((section, new, value), value)
        raise ConfigError(f"{option} was renamed: use {option_now}={value_now}")
    for choice in value.split(","):  # a sweep has several values
        if new := RENAMED_VALUES.get((section, name, choice)):
            raise ConfigError(f"{option}={choice} was renamed: use {option}={new}")


def renamed_to(section: str, name: str) -> str | None:
    """Return the new name of an option of a section, or None if it was not renamed."""
    return RENAMED_OPTIONS.get((section, name))


def with_new_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration with the new names of its options and values."""
    config = dict(config)
    for (path, old), new in RENAMED_OPTIONS.items():
        section = _copy_section(config, path)
        if old in section:
            section[new] = section.pop(old)
    for (path, option, old), new in RENAMED_VALUES.items():
        section = _copy_section(config, path)
        if section.get(option) == old:
            section[option] = new
    return config


def _copy_section(config: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the section at a dotted path, copied in place; an empty one if there is none."""
    for name in path.split(".") if path else ():
        if not isinstance(config.get(name), dict):
            return {}
        config[name] = dict(config[name])
        config = config[name]
    return config
