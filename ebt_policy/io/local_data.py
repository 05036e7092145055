"""Data sets of the user in the folder $EBT_POLICY_DATA."""

from __future__ import annotations

import os
from pathlib import Path

from ebt_policy.errors import ConfigError


def local_data(*path_parts: str) -> Path | None:
    """Return a file in $EBT_POLICY_DATA, or None if it does not exist.

    Raises:
        ConfigError: if the variable does not name a folder.
    """
    variable = os.environ.get("EBT_POLICY_DATA")
    if not variable:
        return None
    folder = Path(variable).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"EBT_POLICY_DATA={variable} is not a folder; correct the variable, or unset it."
        )
    file = folder.joinpath(*path_parts)
    return file if file.exists() else None
