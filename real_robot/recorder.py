"""Recording of observations and commands into an episode store; a kill loses at most one tick.

During an episode, each tick is one write to a journal. If the program ends for any reason, the
journal has all earlier ticks. At the end of the episode, the journal becomes an episode of the
store, which training reads. After a kill or a full disk, the next episode or recorder does this.
"""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ebt_policy.data.episode_store import append_episodes, write_episodes
from ebt_policy.data.episodes import Episodes
from ebt_policy.data.zarr_store import EpisodeError, is_episode_store, open_store
from ebt_policy.errors import ConfigError
from ebt_policy.io.output import MIB, check_free_space, numbered
from ebt_policy.real_robot.action_source import Plan
from ebt_policy.real_robot.errors import RecordError
from ebt_policy.real_robot.loop import Tick
from ebt_policy.real_robot.recording_layout import STATES, Layout
from ebt_policy.real_robot.supervisor import State


class Recorder:
    """A recorder of episodes into a store (a folder). Opening it recovers an interrupted episode.

    Args:
        store: new folder, or a store with the same columns.
        layout: columns of the recording.
        max_ticks: number of ticks of the longest episode, for which the disk must have space.

    Attributes:
        recovered: number of recovered ticks of an interrupted episode, 0 if there was none.

    Raises:
        ConfigError: the folder is not an episode store or has other columns, or the disk has no
            space for an episode.
        RecordError: the interrupted episode cannot be written.
    """

    def __init__(self, store: Path, layout: Layout, max_ticks: int = 0) -> None:
        if store.suffix == ".zip" or (store.exists() and not is_episode_store(store)):
            raise ConfigError(
                f"record={store} is not an episode store; give a new folder or an episode store."
            )
        if store.exists() and stored_shapes(store) != layout.shapes():
            raise ConfigError(
                f"record={store} has other columns than a recording of {layout.robot}; give "
                "another folder."
            )
        self.store, self.layout = store, layout
        self._journal = store.with_name(f".{store.name}.journal")
        self._file: int | None = None
        self._bytes_written = 0  # bytes of complete rows in the journal
        self._failure: RecordError | None = None
        # Each row is written twice, into the journal and into the store.
        self._required_bytes = 2 * max_ticks * layout.dtype.itemsize + MIB
        self.recovered = self._recover()
        self._check_space()

    def begin(self) -> None:
        """Start an episode, before the robot moves.

        Raises:
            ConfigError: the disk has no space for an episode.
            RecordError: the journal cannot be written.
        """
        assert self._file is None
        self._failure = None
        self._check_space()
        self._recover()
        with self._wrap_errors():
            num_episodes = _num_episodes(self.store)
            self._file = os.open(self._journal, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        self._bytes_written = 0
        header = {"columns": self.layout.columns(), "episodes": num_episodes}
        self._write((json.dumps(header) + "\n").encode())

    def add(self, tick: Tick, plan: Plan | None) -> None:
        """Record a tick in the state RUNNING; skip other ticks.

        Raises:
            RecordError: the tick cannot be written. Later ticks of this episode are not recorded.
        """
        if self._file is None or tick.observation is None or tick.state is not State.RUNNING:
            return
        row = np.zeros(1, self.layout.dtype)
        for name in self.layout.values:
            row[name] = tick.observation.values[name]
        row["position"] = tick.observation.position
        row["wanted"] = np.nan if tick.desired is None else tick.desired
        row["action"] = np.nan if tick.command is None else tick.command
        row["clamped"] = False if tick.clamped is None else tick.clamped
        row["sent"], row["mode"] = tick.sent, STATES.index(tick.state)
        if self.layout.has_human:
            row["human"] = tick.is_human
        row["tick"], row["time"], row["late"] = tick.number, tick.due, tick.late
        row["age"] = tick.began - tick.observation.stamp
        if plan is not None:
            row["latency"], row["steps"] = plan.seconds, plan.steps
            row["energy"] = np.nan if plan.energy is None else plan.energy
            row["surprise"] = plan.inconsistency or 0.0
            if self.layout.has_costs:
                row["cost"] = plan.cost or 0.0
        self._write(row.tobytes())

    def end(self) -> int:
        """End the episode, and return the number of its ticks in the store.

        Raises:
            RecordError: the episode could not be written completely. `begin` or the next recorder
                recovers its journal.
        """
        if self._failure is not None:
            raise self._failure
        if self._file is None:
            return 0
        with self._wrap_errors():
            try:
                os.fsync(self._file)
            finally:
                self._close()
            return self._store_journal()

    def discard(self) -> None:
        """Delete the current episode. The journal of an episode with a write error stays."""
        if self._file is not None:
            self._close()
            self._journal.unlink(missing_ok=True)

    def _check_space(self) -> None:
        folder = self.store.parent
        folder.mkdir(parents=True, exist_ok=True)
        check_free_space(folder, self._required_bytes, "record")

    def _recover(self) -> int:
        """Add an interrupted episode to the store, and return the number of its ticks.

        A journal with an invalid episode is renamed, with a warning, so that the run can record.
        """
        if not self._journal.exists():
            return 0
        with self._wrap_errors():
            try:
                return self._store_journal()
            except EpisodeError as error:
                message = f"an interrupted episode was not added to record={self.store}: {error}"
                warnings.warn(message, stacklevel=2)
                return 0

    def _write(self, content: bytes) -> None:
        """Append to the journal in one write, so that a kill leaves only complete rows.

        If a full disk accepts only a part, the journal is cut after the last complete row.
        """
        assert self._file is not None
        try:
            with self._wrap_errors():
                if os.write(self._file, content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except RecordError as error:
            self._failure = error
            os.ftruncate(self._file, self._bytes_written)
            self._close()
            raise
        self._bytes_written += len(content)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    @contextmanager
    def _wrap_errors(self) -> Iterator[None]:
        """Convert write errors to a `RecordError`."""
        try:
            yield
        except (OSError, EpisodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RecordError(f"record={self.store} cannot be written ({reason}).") from error

    def _store_journal(self) -> int:
        """Add the journal to the store as an episode, and return the number of its ticks.

        Raises:
            EpisodeError: the episode is invalid; its journal was renamed.
        """
        rows, num_episodes = self._read_journal()
        if self._is_stored(rows, num_episodes):
            rows = rows[:0]
        if len(rows):
            arrays = {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names or ()}
            if not np.isfinite(arrays["energy"]).all():  # The policy has no energy.
                arrays["energy"] = np.zeros(len(rows))
            arrays["wanted"] = np.where(np.isnan(rows["wanted"]), rows["action"], rows["wanted"])
            try:
                self._add_episode(arrays)
            except EpisodeError as error:
                raise EpisodeError(f"{error} Its ticks are kept in {self._set_aside()}") from error
        self._journal.unlink()
        return len(rows)

    def _add_episode(self, arrays: dict[str, np.ndarray]) -> None:
        episode = Episodes(arrays, np.array([len(arrays["time"])]), self.layout.attributes())
        if self.store.exists():
            append_episodes(self.store, episode)
        else:
            write_episodes(self.store, episode)

    def _set_aside(self) -> Path:
        """Rename the journal, and return its new path."""
        names = numbered(self.store.with_name(f"{self.store.name}.journal"))
        return self._journal.rename(next(name for name in names if not name.exists()))

    def _is_stored(self, rows: np.ndarray, num_episodes: int | None) -> bool:
        """Return whether a kill came between adding the episode and deleting its journal.

        Args:
            rows: rows of the episode.
            num_episodes: number of episodes before this one; None if it is not known.
        """
        if num_episodes is None or _num_episodes(self.store) <= num_episodes:
            return False
        with open_store(self.store) as store:
            ends = store.read("meta/episode_ends")
            first = int(ends[num_episodes - 1]) if num_episodes else 0
            times = store.read("data/time", int(ends[num_episodes]), first)
        return np.array_equal(times, rows["time"])

    def _read_journal(self) -> tuple[np.ndarray, int | None]:
        """Return the rows to store, and the number of episodes in the store before them.

        The rows have a command and the state RUNNING. The number is None if it is not known.
        """
        content = self._journal.read_bytes()
        line, newline, body = content.partition(b"\n")
        columns, num_episodes = _parse_header(line) if newline else (self.layout.columns(), None)
        if columns != self.layout.columns():
            raise ConfigError(
                f"{self._journal} was recorded from another robot; move it away, or give another "
                f"folder than record={self.store}."
            )
        dtype = self.layout.dtype
        rows = np.frombuffer(body[: len(body) // dtype.itemsize * dtype.itemsize], dtype)
        running = rows["mode"] == STATES.index(State.RUNNING)
        kept = rows[running & np.isfinite(rows["action"]).all(axis=1)]
        return kept, num_episodes


def stored_shapes(store: Path) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the columns of a store."""
    with open_store(store) as opened:
        return {
            name: tuple(opened.array(f"data/{name}").shape[1:])
            for name in opened.array_names("data")
        }


def _num_episodes(store: Path) -> int:
    """Return the number of episodes of a store, 0 if it does not exist."""
    if not store.exists():
        return 0
    with open_store(store) as opened:
        return len(opened.read("meta/episode_ends"))


def _parse_header(line: bytes) -> tuple[list | None, int | None]:
    """Return the columns of a journal and the number of episodes in the store before it.

    The columns are None if the line is damaged. The number is None in journals of earlier versions,
    whose header is only the list of columns.
    """
    try:
        header = json.loads(line)
    except ValueError:
        return None, None
    if isinstance(header, list):
        return header, None
    return header["columns"], header["episodes"]
