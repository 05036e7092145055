"""Episodes that a run executes, keeps and reports, with and without an operator."""

import errno
import itertools
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from doubles import point_runner

from ebt_policy.data.episode_store import read_episodes
from ebt_policy.errors import ConfigError
from ebt_policy.io.output import output_store
from ebt_policy.real_robot.episode_series import EpisodeSeries, exit_code
from ebt_policy.real_robot.keyboard import Operator
from ebt_policy.real_robot.optional_outputs import BestEffort, TickVideo
from ebt_policy.real_robot.recorder import Recorder
from ebt_policy.real_robot.recording_layout import Layout
from ebt_policy.real_robot.report import markdown_table, summarize
from ebt_policy.real_robot.run_options import RunOptions
from ebt_policy.real_robot.run_robot import report_results
from ebt_policy.real_robot.source_factory import NamedSource
from ebt_policy.real_robot.supervisor import State
from ebt_policy.real_robot.teleop_device import TeleopContext, TeleopDevice

LAYOUT = Layout({"obs": ("<f4", (2,))}, ("x", "y"), 10.0, "point")


def run_series(runner, keys=None, output=Path(), **options):
    """Run a series of episodes as `run_robot` does.

    Args:
        keys: seconds from now -> key that the operator presses; None without an operator.
        options: run options.
    """
    operator = Operator(runner.supervisor, runner.estop)
    for seconds, key in (keys or {}).items():
        runner.clock.call_at(runner.clock.now() + seconds, lambda key=key: operator.press_key(key))
    options, has_keys = RunOptions(checkpoint="x", **options), keys is not None
    series = EpisodeSeries(runner, options, output, operator, has_keys)
    series.run()
    return series


def series_results(runner, keys=None, **options):
    return run_series(runner, keys, **options).results


def slow_runner(**more):
    """Return a runner whose policy never answers in time."""
    return point_runner(delay=9.0, **more)


@pytest.mark.parametrize("keep", ["completed", "successful"])
def test_unattended_robot_stays_held_and_the_table_has_the_reason(tmp_path, keep):
    runner, driver, _, _ = slow_runner(record=tmp_path / "run")
    episodes = series_results(runner, episodes=3, keep=keep)
    assert len(episodes) == 1 and not episodes[0].kept and exit_code(episodes) == 4
    assert driver.holding and runner.supervisor.state is State.HOLD
    assert not list(tmp_path.iterdir())
    table = markdown_table(summarize(episodes))
    assert "| ended by a hold or a stop | 1 of 1 |" in table
    assert "| held | the policy did not answer for 0.6 s |" in table


def test_keep_all_keeps_held_episodes_of_a_simulated_robot(tmp_path):
    runner, _, _, _ = slow_runner()
    episodes = series_results(runner, episodes=2, keep="all")
    assert [episode.kept for episode in episodes] == [True, True] and exit_code(episodes) == 4
    assert "| held | the policy did not answer for 0.6 s (2 times) |" in markdown_table(
        summarize(episodes)
    )


def test_fault_ends_an_unattended_run(tmp_path):
    runner, _, policy, _ = point_runner(record=tmp_path / "run")

    def fail(actions):
        raise RuntimeError("out of\nmemory | [/red]")

    policy.chunk = fail
    episodes = series_results(runner, episodes=3, keep="all")
    assert len(episodes) == 1 and exit_code(episodes) == 3
    reason = r"the policy failed (RuntimeError: out of memory \| [/red])."
    assert f"| stopped | {reason} |" in markdown_table(summarize(episodes))


def test_completed_episodes_are_kept(tmp_path):
    runner, _, _, _ = point_runner(record=tmp_path / "run")
    episodes = series_results(runner, episodes=2)
    assert all(episode.kept for episode in episodes) and exit_code(episodes) == 0
    assert len(read_episodes(tmp_path / "run")) == 2
    assert "held" not in markdown_table(summarize(episodes))


def test_stopped_robot_waits_until_rearmed(tmp_path):
    runner, driver, _, clock = point_runner(record=tmp_path / "run")
    start = clock.now()
    episodes = series_results(runner, {1.55: " ", 2.0: "r", 3.0: "s", 9.0: "a"})
    assert [e.ended[0] for e in episodes] == [State.FAULT, State.RUNNING]
    assert episodes[0].ended[1] == "emergency stop: space bar"
    assert not [when for when, _ in driver.commands if start + 1.55 < when < start + 9.0]
    assert [e.kept for e in episodes] == [False, True] and exit_code(episodes) == 0
    assert len(read_episodes(tmp_path / "run")) == 1


@pytest.mark.parametrize("keep", ["completed", "all"])
def test_quitting_while_stopped_ends_the_run(keep):
    runner, _, _, clock = point_runner()
    start = clock.now()
    episodes = series_results(runner, {1.5: " ", 9.0: "q"}, keep=keep)
    assert len(episodes) == 1 and exit_code(episodes) == 3
    assert clock.now() == pytest.approx(start + 9.0, abs=0.1)  # also after the last


def test_held_robot_waits_for_acknowledgement_between_episodes():
    runner, _, _, clock = slow_runner()
    start = clock.now()
    episodes = series_results(runner, {7.0: "r", 14.0: "q"})
    assert len(episodes) == 2 and exit_code(episodes) == 4
    assert episodes[0].acknowledged and episodes[1].ticks[0].due >= start + 7.0


def test_emergency_stop_between_episodes_stops_a_held_robot():
    runner, _, _, _ = slow_runner()
    series_results(runner, {7.0: " ", 8.0: "r", 9.0: "q"})
    assert runner.supervisor.state is State.FAULT
    assert runner.supervisor.reason == "emergency stop: space bar"


def test_robot_that_fails_its_checks_stays_stopped():
    runner, driver, _, clock = point_runner()
    clock.call_at(clock.now() + 1.0, lambda: setattr(driver, "gone", True))
    clock.call_at(clock.now() + 6.0, lambda: setattr(driver, "gone", False))
    episodes = series_results(runner, {3.0: "a", 7.0: "a"})
    reasons = [change.reason for change in runner.supervisor.changes]
    assert reasons.count("the robot is gone.") == 2
    assert [e.ended[0] for e in episodes] == [State.FAULT, State.RUNNING]


def test_failed_reset_stops_the_robot_and_earlier_episodes_are_reported():
    runner, driver, _, _ = point_runner()
    usual = driver.reset

    def reset(seed):
        if seed == 8:
            driver.gone = True
        usual(seed)

    driver.reset = reset
    episodes = series_results(runner, seed=7, episodes=3)
    assert [e.ended[0] for e in episodes] == [State.RUNNING, State.FAULT]
    assert summarize(episodes)["episodes"] == 2


def test_stop_is_not_released_before_it_is_handled():
    runner, _, _, _ = point_runner()
    operator = Operator(runner.supervisor, runner.estop)
    operator.press_key(" ")
    operator.press_key("a")
    assert runner.estop.pressed.is_set()


# -- full disk ----------------------------------------------------------------------------------


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_disk_from(monkeypatch, number, part=0):
    """Let writes fail from number ``number`` on; return a switch with the key "full".

    Args:
        part: bytes that a failing write still stores; if 0, it raises ENOSPC.
    """
    usual, state, count = os.write, {"full": True}, itertools.count(1)

    def write(file, content):
        if next(count) < number or not state["full"]:
            return usual(file, content)
        return usual(file, content[:part]) if part else no_space()

    monkeypatch.setattr("ebt_policy.real_robot.recorder.os.write", write)
    return state


@pytest.mark.parametrize("part", [0, 17])
@pytest.mark.parametrize("keep", ["completed", "all"])
def test_full_disk_stops_the_robot_without_data_loss(tmp_path, monkeypatch, keep, part):
    store = tmp_path / "run"
    runner, driver, _, _ = point_runner(record=store)
    fill_disk_from(monkeypatch, 41 + 1 + 21, part)  # episode 1, then a header and 20 rows
    episodes = series_results(runner, episodes=3, keep=keep)
    assert [e.ended[0] for e in episodes] == [State.RUNNING, State.FAULT]
    assert episodes[1].ended[1] == f"record={store} cannot be written (No space left on device)."
    assert driver.holding and [e.kept for e in episodes] == [True, False]
    assert len(read_episodes(store)) == 1
    monkeypatch.undo()
    assert Recorder(store, LAYOUT).recovered == 20
    assert len(read_episodes(store)) == 2


def test_recording_resumes_after_disk_space_is_freed(tmp_path, monkeypatch):
    store = tmp_path / "run"
    runner, _, _, clock = point_runner(record=store)
    disk = fill_disk_from(monkeypatch, 22)
    clock.call_at(clock.now() + 5.0, lambda: disk.update(full=False))
    episodes = series_results(runner, {6.0: "a"})
    assert [e.kept for e in episodes] == [False, True]
    assert len(read_episodes(store)) == 2  # the rows recorded before, and the next episode


def test_unstored_episode_stays_in_the_journal(tmp_path, monkeypatch):
    store = tmp_path / "run"
    runner, _, _, _ = point_runner(record=store)
    monkeypatch.setattr("ebt_policy.real_robot.recorder.write_episodes", no_space)
    episodes = series_results(runner, episodes=2)
    assert [e.ended[0] for e in episodes] == [State.FAULT] and not store.exists()
    monkeypatch.undo()
    assert Recorder(store, LAYOUT).recovered > 30


def test_disk_space_is_checked_before_motion(tmp_path):
    with pytest.raises(ConfigError, match=r"record=.* needs [\d,]+ MiB of free disk space"):
        Recorder(tmp_path / "run", LAYOUT, max_ticks=1 << 50)


def test_nothing_is_recorded_before_the_start(tmp_path):
    runner, _, _, _ = point_runner(record=tmp_path / "run", change={"confirm": True})
    sizes = []

    def measure(tick):
        sizes.append((tmp_path / ".run.journal").stat().st_size)

    runner.loop.observers = [*runner.loop.observers, measure]
    series_results(runner, {30.0: "s"})
    assert sizes[0] == sizes[299] and len(read_episodes(tmp_path / "run").arrays["obs"]) == 40


def test_concurrent_recording_into_one_store_is_refused(tmp_path):
    store = tmp_path / "new" / "run"
    with output_store(store, "record"):
        with (
            pytest.raises(ConfigError, match=r"run is in use by process"),
            output_store(store, "record"),
        ):
            pass
        with output_store(store.with_name("other"), "record"):
            pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("keys", "code"), [(None, 2), ({1.0: " ", 2.0: "q"}, 3)])
def test_unwritable_results_are_printed(tmp_path, monkeypatch, capsys, keys, code):
    runner, _, _, _ = point_runner()
    series = run_series(runner, keys, tmp_path)
    monkeypatch.setattr("ebt_policy.real_robot.run_robot.write_results", no_space)
    source = NamedSource("x", 0, runner.source, {})
    assert report_results(series, source, "command") == code
    output = capsys.readouterr()
    assert "ticks per second" in output.out
    assert f"error: output={tmp_path} cannot be written (No space left on device)" in output.err


# -- optional outputs ----------------------------------------------------------------------------


@pytest.mark.parametrize("fails", ["at first", "in the middle", "at the end"])
def test_unwritable_video_does_not_stop_the_run(tmp_path, fails):
    runner, _, _, _ = point_runner()
    frames, path = [], tmp_path / "video.mp4"

    def frame():
        frames.append(1)
        side = 8 if fails == "in the middle" and len(frames) == 9 else 16
        return np.zeros((side, side, 3), np.uint8)

    if fails == "at first":
        (tmp_path / "file").write_text("")
        path = tmp_path / "file" / "video.mp4"
    video = BestEffort("video", lambda: TickVideo(path, 10, frame))
    runner.loop.observers = [video]
    assert runner.run_episode(0).ended[0] is State.RUNNING
    if fails == "at the end":
        path.mkdir()  # the file cannot replace a folder
    video.close()
    assert video.failure.startswith("video=: incomplete output (")
    assert len(frames) == {"at first": 0, "in the middle": 9, "at the end": 40}[fails]
    assert not list(tmp_path.glob(".*partial"))


def test_an_episode_without_ticks_has_no_video(tmp_path):
    video = BestEffort("video", lambda: TickVideo(tmp_path / "video.mp4", 10, lambda: None))
    video.close()
    assert not video.failure and not list(tmp_path.iterdir())


class StandingPerson(TeleopDevice):
    """A person who asks for the present position, or whose device fails at a tick."""

    fails_at: int | None = None

    def action(self, tick, motion):
        if tick == self.fails_at:
            raise OSError("the device is unplugged")
        return np.array(motion.position)


def teleop_runner(tmp_path, **change):
    runner, driver, _, _ = point_runner(record=tmp_path / "run", **change)
    source = runner.source
    context = TeleopContext(driver, runner.robot.safety, source.dt, source.worker)
    runner.source = runner.loop.source = StandingPerson(context)
    return runner


def test_enter_and_backspace_end_episodes_of_teleoperation(tmp_path):
    runner = teleop_runner(tmp_path)
    runner.prepare()
    series = run_series(runner, {0.4: "\n", 0.9: "\x7f", 1.4: "\n"}, mode="teleop", episodes=2)
    assert [result.kept for result in series.results] == [True, False, True]
    assert all(result.ticks and result.seconds < 0.7 for result in series.results)
    assert len(read_episodes(tmp_path / "run")) == 2


def test_enter_before_the_start_is_ignored(tmp_path):
    runner = teleop_runner(tmp_path)
    runner.robot = replace(runner.robot, confirm=True)
    runner.prepare()
    series = run_series(runner, {0.3: "\n", 0.6: "s", 1.2: "\n"}, mode="teleop", episodes=1)
    (result,) = series.results
    assert result.kept and 0.4 < result.seconds < 0.8


def test_failing_device_stops_the_robot(tmp_path):
    runner = teleop_runner(tmp_path)
    runner.source.fails_at = 5
    runner.prepare()
    series = run_series(runner, mode="teleop", episodes=2)
    (result,) = series.results
    assert result.ended[0] is State.FAULT
    assert "source of actions failed (OSError: the device is unplugged)" in result.ended[1]


def test_policies_ignore_enter(tmp_path):
    runner = point_runner(record=tmp_path / "run")[0]
    runner.prepare()
    (result,) = series_results(runner, {0.2: "\n"}, episodes=1)
    assert result.seconds > 0.5
