"""Terminal output during a run: a live dashboard, and a line for each hold or stop."""

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

from ebt_policy.real_robot.episode_runner import EpisodeRunner
from ebt_policy.real_robot.keyboard import KEYS
from ebt_policy.real_robot.loop import Tick
from ebt_policy.real_robot.supervisor import STATE_WORDS, State, StateChange, Supervisor

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
    """A panel with state, rate, lateness, latency, energy and clamped ticks; an observer of ticks.

    Args:
        title: title of the panel.
        window: number of the newest ticks from which the statistics are computed.
    """

    def __init__(self, title: str, window: int = 100) -> None:
        self._title = title
        self._ticks: deque[Tick] = deque(maxlen=window)
        self._energies: deque[float] = deque(maxlen=40)
        self._cost: float | None = None
        self.runner: EpisodeRunner | None = None

    def __call__(self, tick: Tick) -> None:
        self._ticks.append(tick)
        plan = self.runner.source.plan if self.runner else None
        if plan is not None and plan.energy is not None and plan.start == tick.number:
            self._energies.append(plan.energy)
        self._cost = None if plan is None else plan.cost

    def __rich__(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        ticks, runner = list(self._ticks), self.runner
        if runner is None:
            return Panel("starting", title=escape(self._title))
        supervisor = runner.supervisor
        colour = COLOURS[supervisor.state]
        table.add_row("state", f"[{colour}]{supervisor.state}[/] {escape(supervisor.reason)}")
        if ticks and ticks[-1].is_human:
            table.add_row("control", "[cyan]person[/]")
        if len(ticks) > 1:
            span = ticks[-1].began - ticks[0].began
            rate = (len(ticks) - 1) / max(span, 1e-9)
            table.add_row("rate", f"{rate:.1f} Hz, {runner.loop.overruns} ticks skipped")
            table.add_row("lateness", _format_percentiles([t.late for t in ticks]))
            clamped = [t.clamped for t in ticks if t.clamped is not None and t.is_clamped]
            counts = np.sum(clamped, axis=0) if clamped else []
            names = [n for n, c in zip(runner.robot.action, counts, strict=False) if c]
            table.add_row("clamped", f"{len(clamped)} of {len(ticks)} ticks {' '.join(names)}")
            table.add_row("without a plan", f"{runner.loop.ticks_without_plan} ticks")
        if runner.source.latencies:
            table.add_row("latency", _format_percentiles(runner.source.latencies[-100:]))
        if self._energies:
            table.add_row("energy", f"{self._energies[-1]:.2f} {sparkline(list(self._energies))}")
        if self._cost is not None:
            table.add_row("cost", f"{self._cost:.2f} nats")
        return Panel(table, title=escape(self._title), subtitle=KEYS, border_style=colour)


def sparkline(values: list[float]) -> str:
    """Return the values as bars, scaled to their range, such as ``▁▄█``."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BARS[min(int((v - low) / span * len(BARS)), len(BARS) - 1)] for v in values)


def _format_percentiles(seconds: list[float]) -> str:
    p50, p95, p99 = np.percentile([1e3 * s for s in seconds], [50, 95, 99])
    return f"p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} ms"


@contextmanager
def live_dashboard(dashboard: Dashboard, console: Console, live: bool) -> Iterator[Any]:
    """Draw the dashboard four times per second in its own thread, if there is a terminal."""
    if not (live and console.is_terminal):
        yield
        return
    with Live(dashboard, console=console, refresh_per_second=4):
        yield


@contextmanager
def announce_changes(
    supervisor: Supervisor, console: Console, remedies: dict[State, str]
) -> Iterator[None]:
    """Print a line whenever the robot is held or stopped, or a person resumes it.

    The lines are printed by a separate thread, so that a slow or paused terminal does not delay the
    loop.

    Args:
        remedies: state -> what a person can do in it. A state that is not in `STATE_WORDS` is
            printed only if it is in here.
    """
    ended, num_printed = threading.Event(), max(len(supervisor.changes) - 1, 1)

    def print_changes() -> None:
        nonlocal num_printed
        last = supervisor.changes[num_printed - 1]
        changes = supervisor.changes[num_printed:]
        for before, change in zip([last, *changes], changes, strict=False):
            if line := _format_change(before, change, remedies):
                console.print(line, soft_wrap=True, highlight=False)
        num_printed += len(changes)

    def watch() -> None:
        while not ended.wait(POLL_S):
            print_changes()

    thread = threading.Thread(target=watch, daemon=True, name="announcer")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        print_changes()


def _format_change(before: StateChange, change: StateChange, remedies: dict[State, str]) -> str:
    """Return the line for a change of state; "" if it is not printed."""
    remedy = f" ({remedies[change.state]})" if change.state in remedies else ""
    label, colour = STATE_WORDS.get(change.state, str(change.state)), COLOURS[change.state]
    if change.state in STATE_WORDS or remedy:
        return f"[{colour}]{label}:[/] {escape(change.reason + remedy)}"
    if change.state is State.RUNNING and before.state is State.HOLD:
        return f"[{colour}]{label}:[/] {escape(change.reason)}"
    return ""
