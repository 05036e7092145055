"""Recording of episodes: they are trainable, and a kill loses at most the last ticks."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from doubles import point_runner

from ebt_policy.data.episode_store import read_episodes, write_episodes
from ebt_policy.data.episodes import Episodes
from ebt_policy.data.windows import Windows
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.drivers.base import Observation
from ebt_policy.real_robot.errors import RecordError
from ebt_policy.real_robot.loop import Tick
from ebt_policy.real_robot.recorder import Recorder
from ebt_policy.real_robot.recording_layout import Layout
from ebt_policy.real_robot.supervisor import State

LAYOUT = Layout({"obs": ("<f4", (2,))}, ("x", "y"), 10.0, "point")


def test_recorded_episodes_equal_the_run_and_are_trainable(tmp_path):
    store = tmp_path / "recorded"
    observed: list[Tick] = []
    runner, _, _, _ = point_runner(record=store, observers=[observed.append])
    episodes = [runner.run_episode(seed) for seed in (0, 1)]
    recorded = read_episodes(store)
    assert len(recorded) == 2 and recorded.attrs["rate_hz"] == 10
    assert recorded.attrs["names"]["action"] == ["x", "y"]
    for i, episode in enumerate(episodes):
        rows = recorded.episode(i)
        num_ticks = len(episode.ticks)
        ticks = [tick for tick in observed[:num_ticks] if tick.command is not None]
        del observed[:num_ticks]
        for name, values in {
            "obs": [tick.observation.values["obs"] for tick in ticks],
            "action": [tick.command for tick in ticks],
            "position": [tick.observation.position for tick in ticks],
            "time": [tick.due for tick in ticks],
        }.items():
            np.testing.assert_allclose(rows[name], np.array(values))
        assert rows["sent"].all() and (rows["age"] >= 0).all() and (rows["age"] < 0.1).all()
        assert rows["latency"].max() == pytest.approx(0.02) and rows["steps"].max() == 2
    windows = Windows(recorded.arrays, recorded.ends, horizon=16, n_obs_steps=2, n_action_steps=8)
    assert len(windows) > 40


def test_episode_can_be_discarded(tmp_path):
    store = tmp_path / "recorded"
    recorder = Recorder(store, LAYOUT)
    recorder.begin()
    recorder.discard()
    assert not any(tmp_path.iterdir())
    assert recorder.end() == 0


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from doubles import point_runner
runner, *_ = point_runner(record=Path({store!r}), change={{"episode_s": 1e6}})
runner.loop.observers = [*runner.loop.observers, lambda tick: print(tick.number, flush=True)]
runner.run_episode(0)
"""


@pytest.mark.parametrize("before", [0, 1])
def test_killed_program_keeps_its_ticks(tmp_path, before):
    store = tmp_path / "recorded"
    for seed in range(before):  # episodes of earlier runs
        point_runner(record=store)[0].run_episode(seed)
    code = KILLED.format(tests=str(Path(__file__).parent), store=str(store))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ}
    ) as program:
        assert program.stdout is not None
        for _ in range(60):
            program.stdout.readline()
        program.send_signal(signal.SIGKILL)
        printed_ticks = 60 + len(program.stdout.read().splitlines())
    recorder = Recorder(store, LAYOUT)
    assert recorder.recovered >= printed_ticks - 2
    recorded = read_episodes(store)
    assert len(recorded) == before + 1
    assert (np.diff(recorded.episode(-1)["tick"]) == 1).all()
    assert Recorder(store, LAYOUT).recovered == 0


@pytest.mark.parametrize("cut", [0, 10, 100, -1, -100])
def test_truncated_journal_is_recovered_up_to_the_cut(tmp_path, cut):
    store = tmp_path / "recorded"
    runner, _, _, _ = point_runner(record=store)
    runner.recorder.end = lambda: 0  # simulates a kill before the end
    runner.run_episode(0)
    journal = tmp_path / ".recorded.journal"
    content = journal.read_bytes()
    journal.write_bytes(content[:cut])
    recovered = Recorder(store, LAYOUT).recovered
    assert (
        (recovered > 30) == (cut < 0) and store.exists() == (recovered > 0) and not journal.exists()
    )


def test_journal_of_another_robot_is_untouched(tmp_path):
    store = tmp_path / "recorded"
    runner, _, _, _ = point_runner(record=store)
    runner.recorder.end = lambda: 0
    runner.run_episode(0)
    other = Layout({"obs": ("<f4", (3,))}, ("x", "y"), 10.0, "other")
    with pytest.raises(ConfigError, match="was recorded from another robot"):
        Recorder(store, other)
    assert Recorder(store, LAYOUT).recovered > 30


def test_stores_of_other_layouts_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="not an episode store"):
        Recorder(tmp_path / "store.zip", LAYOUT)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an episode store"):
        Recorder(tmp_path / "folder", LAYOUT)
    store = tmp_path / "other"
    rows = {"obs": np.zeros((4, 7)), "action": np.zeros((4, 2))}
    write_episodes(store, Episodes(rows, np.array([4])))
    with pytest.raises(ConfigError, match="has other columns"):
        Recorder(store, LAYOUT)


def record_ticks(recorder, value=0.0, number=5):
    """Record ticks of an episode that has the given observation at its third tick."""
    recorder.begin()
    for i in range(number):
        obs = np.full(2, value if i == 2 else 0.0, np.float32)
        observation = Observation({"obs": obs}, np.zeros(2), float(i))
        tick = Tick(i, float(i), 0.0, State.RUNNING, observation, np.zeros(2), np.zeros(2), True)
        recorder.add(tick, None)


def test_an_episode_that_cannot_be_stored_is_kept_beside_the_store(tmp_path):
    store = tmp_path / "recorded"
    recorder = Recorder(store, LAYOUT)
    for name in ("recorded.journal", "recorded.journal-2"):
        record_ticks(recorder, np.nan)
        message = rf'"obs" has NaN or infinity .* kept in {tmp_path / name}\)'
        with pytest.raises(RecordError, match=message):
            recorder.end()
        assert (tmp_path / name).stat().st_size > 5 * LAYOUT.dtype.itemsize
    record_ticks(recorder)
    assert recorder.end() == 5 and len(read_episodes(store)) == 1


def test_an_interrupted_episode_that_cannot_be_stored_does_not_block_the_next_run(tmp_path):
    store = tmp_path / "recorded"
    record_ticks(Recorder(store, LAYOUT), np.nan)  # The program is killed here.
    with pytest.warns(UserWarning, match=r"interrupted .* kept in .*recorded\.journal$"):
        recorder = Recorder(store, LAYOUT)
    assert recorder.recovered == 0 and (tmp_path / "recorded.journal").exists()
    record_ticks(recorder)
    assert recorder.end() == 5


def kill_before_the_journal_is_deleted(recorder, monkeypatch):
    """End the episode of a recorder, and raise KeyboardInterrupt after it is stored."""

    unlink = Path.unlink

    def interrupt(path, missing_ok=False):
        if path.name.endswith(".journal"):
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupt)
        with pytest.raises(KeyboardInterrupt):
            recorder.end()


@pytest.mark.parametrize("before", [0, 2])
def test_an_episode_whose_journal_was_not_deleted_is_stored_once(tmp_path, before, monkeypatch):
    store = tmp_path / "recorded"
    recorder = Recorder(store, LAYOUT)
    for number in range(before):
        record_ticks(recorder, number=3 + number)
        recorder.end()
    record_ticks(recorder, number=9)
    kill_before_the_journal_is_deleted(recorder, monkeypatch)
    assert Recorder(store, LAYOUT).recovered == 0
    assert read_episodes(store).lengths.tolist() == [3, 4][:before] + [9]
    assert not (tmp_path / ".recorded.journal").exists()


def test_a_journal_is_stored_if_another_episode_was_added_meanwhile(tmp_path):
    store = tmp_path / "recorded"
    record_ticks(Recorder(store, LAYOUT), number=9)  # The program is killed here.
    journal = tmp_path / ".recorded.journal"
    content = journal.read_bytes()
    journal.unlink()
    recorder = Recorder(store, LAYOUT)
    record_ticks(recorder, number=4)
    recorder.end()
    journal.write_bytes(content)
    assert Recorder(store, LAYOUT).recovered == 9
    assert read_episodes(store).lengths.tolist() == [4, 9]


def test_journals_of_earlier_versions_are_recovered(tmp_path):
    store = tmp_path / "recorded"
    record_ticks(Recorder(store, LAYOUT), number=9)
    journal = tmp_path / ".recorded.journal"
    header, _, body = journal.read_bytes().partition(b"\n")
    journal.write_bytes(json.dumps(json.loads(header)["columns"]).encode() + b"\n" + body)
    assert Recorder(store, LAYOUT).recovered == 9 and len(read_episodes(store)) == 1
