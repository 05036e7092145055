"""`python -m ebt_policy.real_robot.run` as a user starts it, in real time, with a tiny policy."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import wait_for

from ebt_policy.data.dataset import open_dataset
from ebt_policy.data.episode_store import read_episodes
from ebt_policy.real_robot.drivers.base import ROBOT_DRIVERS
from ebt_policy.real_robot.drivers.sim import SimRobot
from ebt_policy.real_robot.robots import load_robot
from ebt_policy.real_robot.run import main
from ebt_policy.real_robot.run_options import RunOptions
from ebt_policy.real_robot.run_robot import results_folder
from ebt_policy.real_robot.teleop_device import TELEOP_DEVICES, TeleopDevice

TIMEOUT_S = 120.0  # seconds to wait for an expected event
# The timeouts are long because a busy machine is slow.
LONG_TIMEOUTS = [
    f"robot.watch.{name}=60" for name in ("observation_s", "inference_s", "heartbeat_s")
]


@pytest.fixture
def arguments(tiny_run, tmp_path):
    def make(*more, robot="sim_push_t"):
        base = [f"robot={robot}", "robot.episode_s=2", "live=false", f"output={tmp_path / 'out'}"]
        return [*base, *LONG_TIMEOUTS, f"checkpoint={tiny_run}", *more]

    return make


def test_run_writes_results_figure_video_and_recording(call_entry, arguments, tmp_path):
    store = tmp_path / "recorded"
    lerobot = tmp_path / "lerobot" / "recorded"
    code, error = call_entry(
        main, *arguments("episodes=2", "video=true", f"record={store}", f"lerobot={lerobot}")
    )
    assert code == 0, error
    out = tmp_path / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["episodes"] == 2 and summary["ticks"] + summary["overruns"] >= 38
    assert summary["ticks"] <= 40 and 0 < summary["rate_hz"] < 11 and summary["score"]["mean"] >= 0
    assert {"p50", "p95", "p99"} <= set(summary["late_ms"]) and summary["latency_ms"]["p50"] > 0
    assert (out / "timeline.svg").read_text().count("<path") > 5
    assert sorted(p.name for p in (out / "videos").iterdir()) == [
        "seed_100000.mp4", "seed_100001.mp4",
    ]  # fmt: skip
    recorded = read_episodes(store)
    assert len(recorded) == 2
    with open_dataset(lerobot) as dataset:
        assert dataset.format == "lerobot" and len(dataset) == 2 and dataset.fps == 10
        action = dataset.read(1, ["action"])["action"]
        np.testing.assert_array_equal(action, recorded.episode(1)["action"].astype(action.dtype))
    code, error = call_entry(  # replay of the recording
        main, "robot=sim_push_t", "mode=replay", f"recording={store}", "live=false", *LONG_TIMEOUTS,
        f"output={tmp_path / 'again'}",
    )  # fmt: skip
    assert code == 0, error
    again = json.loads((tmp_path / "again/summary.json").read_text())
    assert again["ticks"] + again["overruns"] >= 18 and again["ticks"] <= 20
    shadow = tmp_path / "shadow"
    code, error = call_entry(  # it ends with the recording
        main, *arguments(f"robot.driver.store={store}", "mode=shadow", robot="replay"),
        f"output={shadow}", "robot.episode_s=60",
    )  # fmt: skip
    assert code == 0, error
    assert json.loads((shadow / "summary.json").read_text())["ticks"] <= 20


def test_dry_run_sends_no_commands(call_entry, arguments, tmp_path):
    code, error = call_entry(main, *arguments("mode=dry_run"))
    assert code == 0 and not (tmp_path / "out").exists(), error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("mode=fly", "mode must be one of run, shadow, dry_run, replay, teleop"),
        ("mode=dry", "mode=dry was renamed: use mode=dry_run"),
        ("keep=solved", "keep=solved was renamed: use keep=successful"),
        ("execution.mode=frozen", "execution.mode=frozen was renamed: use execution.mode=rtc"),
        ("checkpoint=null", "missing required option checkpoint=... for mode=run"),
        ("mode=replay", "missing required option recording=... for mode=replay"),
        ("checkpoint=nowhere", "there is no checkpoint at nowhere"),
        ("~robot.limits.velocity", "limits: velocity must be given"),
        ("robot.limits.acceleration=-1", "acceleration must be positive"),
        ("robot.action=[x,y,z]", "3"),
        ("execution.mode=wild", "execution.mode must be one of blocking, async, rtc"),
        ("speed=0.2", "robot.watch.command_s=0.3"),
        ("robot.confirm=true", "is started by a person with a key, but there is no terminal"),
        (
            "robot.driver.name=hexapod",
            "robot.driver.name=hexapod is unknown; there are replay, ros2, sim",
        ),
        ("robot=ros2_push_t", "video=true needs a simulated robot"),
        ("lerobot=new", "lerobot=new also needs record=STORE"),
        ("keep=best", "keep must be one of completed, successful, all"),
        ("seed=-1", "seed must be at least 0"),
        ("speed=nan", "speed must be"),
        ("robot.episode_s=nan", "episode_s must be"),
        ("robot.episode_s=inf", "episode_s must be"),
        ("robot.rate_hz=-10", "rate_hz must be"),
        ("robot.watch.inference_s=inf", "inference_s must be"),
        ("robot.watch.observation_s=nan", "observation_s must be"),
        ("robot.watch.max_consecutive_clamped_ticks=0", "max_consecutive_clamped_ticks must be"),
        ("execution.max_wait_fraction=nan", "max_wait_fraction must be"),
        ("execution.deadline_s=inf", "deadline_s must be"),
        ("execution.max_plan_inconsistency=-1", "max_plan_inconsistency must be"),
        ("execution.max_plan_inconsistency=nan", "max_plan_inconsistency must be"),
        ("robot.limits.workspace.x=[nan,512]", "workspace.x must be"),
        ("robot.limits.workspace.x=[0,inf]", "workspace.x must be"),
        ("robot.limits.workspace.x=[5,null]", "workspace.x must be"),
        ("robot.limits.workspace.x=[9,1]", "workspace.x must be"),
        ("robot.limits.workspace.x=wide", "workspace.x must be"),
        ("robot.limits.workspace=3", "workspace must be a section"),
        ("+robot.limits.workspace.model=arm.xml", "workspace.site must be given"),
        ("execution=null", "execution must be"),
        ("robot.limits.max_tracking_error=-1", "max_tracking_error must be positive"),
        ("robot.limits.velocity=nan", "velocity must be"),
    ],
)
def test_invalid_runs_are_refused(call_entry, arguments, change, message):
    more = ["video=true"] if "ros2" in change else []
    code, error = call_entry(main, *arguments(change, *more))
    assert code == 2 and message in error and error.count("error:") == 1, error
    assert "Traceback" not in error


def test_paths_and_checkpoint_options_are_parsed(call_entry, arguments, tiny_run, tmp_path):
    names = [f'{stem} it\'s "a" [1], ü=x' for stem in ("~run", "out", "store")]
    run, out, store = (tmp_path / name for name in names)
    run.symlink_to(tiny_run)
    code, error = call_entry(
        main, *arguments("robot.episode_s=0.5"), f"checkpoint={run}@steps=2,num_candidates=3",
        f"output={out}", f"record={store}",
    )  # fmt: skip
    assert code == 0, error
    summary = json.loads((out / "summary.json").read_text())
    assert summary["policy"].endswith(f"{Path(tiny_run).name} (steps 2, candidates 3)")
    assert len(read_episodes(store)) == 1


def test_hold_reason_is_printed_without_a_dashboard(call_entry, arguments, tmp_path):
    code, error = call_entry(main, *arguments("robot.watch.inference_s=0.0001"))
    assert code == 4 and error == "held: the policy did not answer for 0.0001 s\n"
    assert "the policy did not answer" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize("options", [(), ("mode=teleop",), ("takeover=true",)])
def test_stop_that_was_pressed_before_the_run_stops_it(call_entry, arguments, monkeypatch, options):
    class Idle(TeleopDevice):
        def action(self, tick, motion):
            return motion.position

    class StoppedRobot(SimRobot):
        is_reported = False

        def connect(self):
            super().connect()
            if not self.is_reported:
                self.press("button of the robot")
            self.is_reported = True

    monkeypatch.setitem(TELEOP_DEVICES._items, "idle", Idle)
    monkeypatch.setitem(ROBOT_DRIVERS._items, "sim", StoppedRobot)
    code, error = call_entry(main, *arguments("input=idle", *options))
    assert code == 3 and error == "stopped: emergency stop: button of the robot\n"


def test_results_of_an_earlier_run_are_kept(call_entry, arguments, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "table.md").write_text("mine")
    code, error = call_entry(main, *arguments())
    assert code == 2 and "out has results of another run (table.md); give another folder" in error
    monkeypatch.chdir(tmp_path)
    robot, options = load_robot("sim_push_t"), RunOptions(checkpoint="runs/first@steps=2")
    with results_folder(robot, options) as folder, results_folder(robot, options) as other_folder:
        assert folder == Path("results/sim_push_t-first-steps2")
        assert other_folder == Path("results/sim_push_t-first-steps2-2")
    assert not Path("results").exists()


@contextmanager
def run_at_terminal(command):
    """Run a program in a pseudo-terminal; yield it and functions to await text and press keys."""
    import pty  # not on every platform

    person, terminal = pty.openpty()
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal) as program:
        os.close(terminal)
        output = ""

        def await_text(text):
            nonlocal output
            end = time.monotonic() + TIMEOUT_S
            while text not in output:
                ready, _, _ = select.select([person], [], [], 1.0)
                assert time.monotonic() < end, output[-2000:]
                output += os.read(person, 4096).decode(errors="ignore") if ready else ""
            output = output.partition(text)[2]

        def press(key):
            os.write(person, key)

        try:
            yield program, await_text, press
        finally:
            program.kill()
            os.close(person)


def terminal_command(arguments, *more):
    command = [sys.executable, "-m", "ebt_policy.real_robot.run", *arguments(*more)]
    return [word for word in command if word != "robot.episode_s=2"]


@pytest.mark.slow
def test_operator_at_a_terminal_stops_rearms_and_quits(arguments, tmp_path):
    more = ("episodes=2", "live=true", "robot.confirm=true", f"record={tmp_path / 'run'}")
    with run_at_terminal(terminal_command(arguments, *more)) as (program, await_text, press):
        await_text("s starts it")
        press(b"s")
        await_text("started by a person")
        press(b"h")
        await_text("held by a person (r resumes it, q quits)")
        press(b"r")
        await_text("resumed by a person")
        press(b" ")
        await_text("emergency stop: space bar (a re-arms it, q quits)")
        press(b"r")  # does not resume a stopped robot
        press(b"s")
        press(b"a")  # re-arms: the robot is checked, then waits for the start
        await_text("s starts it")
        press(b"s")
        await_text("started by a person")
        press(b"q")
        await_text("recorded: 1 episodes")  # the stopped episode is not kept
        assert program.wait(TIMEOUT_S) == 0
    assert len(read_episodes(tmp_path / "run")) == 1


@pytest.mark.slow
def test_emergency_stop_in_the_last_episode_waits_for_the_operator(arguments, tmp_path):
    journal = tmp_path / ".run.journal"
    with run_at_terminal(terminal_command(arguments, f"record={tmp_path / 'run'}")) as (
        program, await_text, press,
    ):  # fmt: skip
        for key in (b"a", b"q"):
            wait_for(lambda: journal.exists())
            press(b" ")
            await_text("emergency stop: space bar (a re-arms it, q quits)")
            wait_for(lambda: not journal.exists())  # discarded; the robot waits
            assert program.poll() is None
            press(key)
        await_text("results:")
        assert program.wait(TIMEOUT_S) == 3
    assert not (tmp_path / "run").exists() and (tmp_path / "out" / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_episode_is_discarded_and_killed_episode_recovered(arguments, tmp_path, number):
    store = tmp_path / "recorded"
    command = [sys.executable, "-m", "ebt_policy.real_robot.run", *arguments(f"record={store}")]
    command[command.index("robot.episode_s=2")] = "robot.episode_s=60"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as program:
        journal = tmp_path / ".recorded.journal"
        wait_for(lambda: journal.exists() and journal.stat().st_size > 5000)
        program.send_signal(number)
        error = program.communicate()[0].decode()
    if number == signal.SIGINT:
        assert program.returncode == 3 and "stopped: emergency stop: Ctrl-C" in error
        assert not store.exists() and not journal.exists()  # a stopped episode is not kept
        assert (tmp_path / "out/summary.json").exists()
    else:
        assert journal.exists() and not store.exists()
        again = subprocess.run(
            [*command, "mode=run", "robot.episode_s=1"], capture_output=True, text=True,
            env={**os.environ},
        )  # fmt: skip
        assert again.returncode == 0 and "of an interrupted episode were recovered" in again.stdout
        assert len(read_episodes(store)) == 2
