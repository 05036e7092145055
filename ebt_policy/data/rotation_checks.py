"""Checks of rotations in a data set: angles that jump by a full turn, quaternions that flip signs.

Both describe the same rotation by distant numbers, so a policy that averages or interpolates them
predicts wrong rotations.

Shapes: L rows of an episode, D entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FULL_TURN = 0.9 * 2 * np.pi  # rad, a larger change from row to row is a jump
UNIT_TOLERANCE = 1e-3  # largest deviation of the norm of a quaternion from 1
DOMINANT = 0.98  # An entry that is always above is a switch between small numbers (-1 or 1).


def jumping_angles(rows: np.ndarray) -> list[int]:
    """Return the entries (L, D) that change by about a full turn from one row to the next.

    >>> jumping_angles(np.array([[3.1, 0.0], [-3.1, 0.1]]))
    [0]
    """
    changes = np.abs(np.diff(rows, axis=0))
    is_angle = np.abs(rows).max(axis=0) <= 2 * np.pi + 1e-3
    jumps = (changes > FULL_TURN) & (changes < 2 * np.pi + 1e-3)
    return np.flatnonzero(jumps.any(axis=0) & is_angle).tolist()


def flipping_quaternions(rows: np.ndarray) -> list[int]:
    """Return the first entry of each quaternion in (L, D) that changes its sign between two rows.

    >>> flipping_quaternions(np.array([[5.0, 0, 0, 0.6, 0.8], [5.1, 0, 0, -0.6, -0.8]]))
    [1]
    """
    starts = []
    for start in range(rows.shape[1] - 3):
        part = rows[:, start : start + 4]
        has_unit_norm = np.abs(np.linalg.norm(part, axis=1) - 1) < UNIT_TOLERANCE
        is_switch = (np.abs(part).max(axis=1) > DOMINANT).all()
        flips = (part[1:] * part[:-1]).sum(axis=1) < -0.5
        if has_unit_norm.all() and flips.any() and not is_switch:
            starts.append(start)
    return starts


def rotation_warnings(
    name: str, entries: Sequence[str], episodes: Sequence[np.ndarray]
) -> list[str]:
    """Return a sentence for each kind of ambiguous rotation of a feature.

    Args:
        name: name of the feature.
        entries: (D,) names of its entries; empty if unknown.
        episodes: its rows (L, D) in some episodes.
    """

    def label(indices: Sequence[int]) -> str:
        return ", ".join(entries[i] if entries else f"{name}[{i}]" for i in sorted(indices))

    warnings = []
    if angles := {i for rows in episodes for i in jumping_angles(rows)}:
        warnings.append(f"{label(list(angles))} of {name} jump by a full turn within episodes.")
    if starts := {i for rows in episodes for i in flipping_quaternions(rows)}:
        warnings.append(
            f"the quaternion that begins with {label([min(starts)])} of {name} changes its sign "
            "within episodes."
        )
    advice = (
        "Policies learn such rotations badly: store the first two columns of the rotation matrix, "
        "or use consistent signs."
    )
    return [f"{warning} {advice}" for warning in warnings]
