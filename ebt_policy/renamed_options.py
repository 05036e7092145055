"""Options that have a new name: for the error that says so, and to read old checkpoints.

The table is also in CHANGELOG.md. Entries stay for one release.
"""

from __future__ import annotations

from typing import Any

# (section as the user types it, old option) -> new option.
RENAMED_OPTIONS: dict[tuple[str, str], str] = {
    ("", "footage"): "video_dataset",  # of eval; videos= is the number of recorded episodes
    ("task", "max_prefix"): "max_prefix_len",
    ("shape", "max_prefix"): "max_prefix_len",  # of a policy's checkpoint
}


def with_new_names(config: dict[str, Any]) -> dict[str, Any]:
    """Return a stored configuration with the new names of its options."""
    config = dict(config)
    for (path, old), new in RENAMED_OPTIONS.items():
        _rename(config, path.split("."), old, new)
    return config


def _rename(config: dict[str, Any], path: list[str], old: str, new: str) -> None:
    """Rename an option of the section at a path, in copies of the sections on the way."""
    for name in path:
        if not isinstance(config.get(name), dict):
            return
        config[name] = dict(config[name])
        config = config[name]
    if old in config:
        config[new] = config.pop(old)
