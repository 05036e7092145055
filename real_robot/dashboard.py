"""What the terminal shows of a run: a live view of the control loop, and a line for each stop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from ebt_policy.real_robot.episode_runner import Session
from ebt_policy.real_robot.keyboard import KEYS
from ebt_policy.real_robot.loop import Tick
from ebt_policy.real_robot.supervisor import SAID, Change, State, Supervisor

COLOURS = {
    State.DISARMED: "dim",
    State.READY: "cyan",
    State.RUNNING: "green",
    State.HOLD: "yellow",
    State.FAULT: "bold red",
}
POLL_S = 0.05
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
            return Panel("starting", title=escape(self._title))
        supervisor = session.supervisor
        colour = COLOURS[supervisor.state]
        table.add_row("state", f"[{colour}]{supervisor.state}[/] {escape(supervisor.reason)}")
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
        return Panel(table, title=escape(self._title), subtitle=KEYS, border_style=colour)


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


@contextmanager
def announced(
    supervisor: Supervisor, console: Console, remedies: dict[State, str]
) -> Iterator[None]:
    """Print a line whenever the robot is held or stopped, or a person lets it go on.

    A thread of its own prints: a terminal that is slow, or paused, must not delay the loop.

    Args:
        remedies: what a person can do about a state; a state beyond `SAID` is printed if it is
            among them.
    """
    ended, told = threading.Event(), max(len(supervisor.changes) - 1, 1)  # from now

    def tell() -> None:
        nonlocal told
        changes = supervisor.changes[told:]
        for before, change in zip([supervisor.changes[told - 1], *changes], changes, strict=False):
            if line := _line(before, change, remedies):
                console.print(line, soft_wrap=True, highlight=False)
        told += len(changes)

    def watch() -> None:
        while not ended.wait(POLL_S):
            tell()

    thread = threading.Thread(target=watch, daemon=True, name="announcer")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        tell()


def _line(before: Change, change: Change, remedies: dict[State, str]) -> str:
    """What is printed of a change of state; "" for one that no person needs to know."""
    remedy = f" ({remedies[change.state]})" if change.state in remedies else ""
    word, colour = SAID.get(change.state, str(change.state)), COLOURS[change.state]
    if change.state in SAID or remedy:
        return f"[{colour}]{word}:[/] {escape(change.reason + remedy)}"
    if change.state is State.RUNNING and before.state is State.HOLD:
        return f"[{colour}]{word}:[/] {escape(change.reason)}"
    return ""
