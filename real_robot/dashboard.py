"""A live view of the control loop in the terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from real_robot.loop import Tick
from real_robot.operator import KEYS
from real_robot.session import Session
from real_robot.supervisor import State

COLOURS = {
    State.DISARMED: "dim",
    State.READY: "cyan",
    State.RUNNING: "green",
    State.HOLD: "yellow",
    State.FAULT: "bold red",
}
BARS = "▁▂▃▄▅▆▇█"


class Dashboard:
    """State, rate, lateness, latency, energy and clamps; an observer of ticks.

    Args:
        title: what runs.
        window: ticks that the numbers are of.
    """

    def __init__(self, title: str, window: int = 100) -> None:
        self._title = title
        self._ticks: deque[Tick] = deque(maxlen=window)
        self._energies: deque[float] = deque(maxlen=40)
        self.session: Session | None = None

    def __call__(self, tick: Tick) -> None:
        self._ticks.append(tick)
        plan = self.session.planner.plan if self.session else None
        if plan is not None and plan.energy is not None and plan.start == tick.tick:
            self._energies.append(plan.energy)

    def __rich__(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        ticks, session = list(self._ticks), self.session
        if session is None:
            return Panel("starting", title=self._title)
        supervisor = session.supervisor
        colour = COLOURS[supervisor.state]
        table.add_row("state", f"[{colour}]{supervisor.state}[/] {supervisor.reason}")
        if len(ticks) > 1:
            span = ticks[-1].began - ticks[0].began
            rate = (len(ticks) - 1) / max(span, 1e-9)
            table.add_row("rate", f"{rate:.1f} Hz, {session.loop.overruns} ticks left out")
            table.add_row("late", _percentiles([t.late for t in ticks]))
            limited = [t.clamped for t in ticks if t.clamped is not None and t.limited]
            which = np.sum(limited, axis=0) if limited else []
            names = [n for n, c in zip(session.robot.action, which, strict=False) if c]
            table.add_row("limited", f"{len(limited)} of {len(ticks)} ticks {' '.join(names)}")
            table.add_row("starved", f"{session.loop.starved} ticks")
        if session.planner.latencies:
            table.add_row("chunk", _percentiles(session.planner.latencies[-100:]))
        if self._energies:
            table.add_row("energy", f"{self._energies[-1]:.2f} {sparkline(list(self._energies))}")
        return Panel(table, title=self._title, subtitle=KEYS, border_style=colour)


def sparkline(values: list[float]) -> str:
    """``▁▄█``: the last values, between their lowest and highest."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BARS[min(int((v - low) / span * len(BARS)), len(BARS) - 1)] for v in values)


def _percentiles(seconds: list[float]) -> str:
    half, most, nearly = np.percentile([1e3 * s for s in seconds], [50, 95, 99])
    return f"p50 {half:.1f}, p95 {most:.1f}, p99 {nearly:.1f} ms"


@contextmanager
def shown(dashboard: Dashboard, console: Console, live: bool) -> Iterator[Any]:
    """Draw it four times a second, from a thread of its own, where there is a terminal."""
    if not (live and console.is_terminal):
        yield
        return
    with Live(dashboard, console=console, refresh_per_second=4):
        yield
