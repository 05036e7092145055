"""Options that have a new name: for the error that says so, and to read old checkpoints.

The table is also in CHANGELOG.md. Entries stay for one release.
"""

from __future__ import annotations

# (section as the user types it, old option) -> new option.
RENAMED_OPTIONS: dict[tuple[str, str], str] = {
    ("task", "max_prefix"): "max_prefix_len",
}
