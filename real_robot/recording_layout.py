"""The columns of a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ebt_policy.real_robot.supervisor import State

STATES = list(State)


@dataclass(frozen=True)
class Layout:
    """The columns of a recording. Their names are part of the file format and must not change.

    "wanted" is the desired action, "action" the allowed command, "surprise" the inconsistency of
    the plan (see `Plan`), "mode" the index of the state in `STATES`, and "human" whether a person
    determined the desired action.

    Args:
        values: name -> type and shape of each observed value.
        names: names of the A entries of an action.
        value_names: name of an observed value -> names of its entries, as far as they are known.
        rate_hz: ticks per second.
        robot: name of the robot.
        has_costs: whether there is a column "cost", the cost of the plan (see `Plan`).
        has_human: whether there is a column "human"; older recordings have none.
    """

    values: dict[str, tuple[str, tuple[int, ...]]]
    names: tuple[str, ...]
    rate_hz: float
    robot: str
    has_costs: bool = False
    has_human: bool = True
    value_names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def from_values(
        cls,
        values: Mapping[str, np.ndarray],
        names: Sequence[str],
        rate_hz: float,
        robot: str,
        *,
        has_costs: bool = False,
        has_human: bool = True,
        value_names: Mapping[str, Sequence[str]] | None = None,
    ) -> Layout:
        """Return the layout for a robot that observes values like these, name -> array."""
        columns = {name: (value.dtype.str, value.shape) for name, value in values.items()}
        return cls(columns, tuple(names), rate_hz, robot, has_costs, has_human, value_names or {})

    @property
    def dtype(self) -> np.dtype:
        """The structured type of a row."""
        width = (len(self.names),)
        rows: list[tuple] = [(name, *kind) for name, kind in self.values.items()]
        rows += [(name, "f8", width) for name in ("position", "wanted", "action")]
        rows += [("clamped", "?", width), ("sent", "?"), ("mode", "u1"), ("tick", "i8")]
        rows += [(name, "f8") for name in ("time", "late", "age", "latency", "energy", "surprise")]
        rows += [("cost", "f8")] * self.has_costs
        rows += [("human", "?")] * self.has_human
        return np.dtype([*rows, ("steps", "i4")])

    def columns(self) -> list:
        """Return the description of `dtype` for JSON, which has no tuples."""
        return _as_lists(self.dtype.descr)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of the columns."""
        dtype = self.dtype
        return {name: dtype[name].shape for name in dtype.names or ()}

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the store."""
        return {
            "rate_hz": self.rate_hz,
            "robot": self.robot,
            "names": {
                **{name: list(entries) for name, entries in self.value_names.items()},
                **{name: list(self.names) for name in ("position", "wanted", "action")},
            },
            "modes": [str(state) for state in STATES],
            "units": {name: "s" for name in ("time", "late", "age", "latency")},
        }


ADDED_COLUMNS = Layout({}, ("",), 1.0, "", has_costs=True).shapes().keys()
"""Names of all columns beside the observed values."""


def _as_lists(value: Any) -> Any:
    """Convert nested tuples to lists, because JSON has no tuples."""
    return [_as_lists(v) for v in value] if isinstance(value, list | tuple) else value
