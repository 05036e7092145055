"""The Rerun log of a run: a file, a viewer that listens, and the web viewer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from conftest import wait_for
from doubles import point_runner

from ebt_policy.errors import ConfigError

pytest.importorskip("rerun")
from ebt_policy.real_robot import rerun_viewer
from ebt_policy.real_robot.rerun_log import RerunLog

pytestmark = pytest.mark.rerun
SIGNALS = ("command/x", "position/y", "late_ms", "chunk_ms", "chunk/x", "energy", "state",
           "observation/obs")  # fmt: skip


def missing_signals(recording: Path) -> list[str]:
    """Return the signals that a recording lacks."""
    command = [sys.executable, "-m", "rerun", "rrd", "print", str(recording)]
    content = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [name for name in SIGNALS if f"/{name}" not in content]


def run_with(log: RerunLog) -> None:
    """Run an episode of a simulated point with this log."""
    runner, _, _, _ = point_runner()
    log.runner = runner
    runner.loop.observers = [*runner.loop.observers, log]
    runner.run_episode(0)
    log.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def ports(monkeypatch):
    """Free ports for the stream and the web page."""
    stream, web = free_port(), free_port()
    monkeypatch.setattr(rerun_viewer, "STREAM_PORT", stream)
    monkeypatch.setattr(rerun_viewer, "WEB_PORT", web)
    return stream, web


def test_file_contains_every_signal(tmp_path):
    path = tmp_path / "logs" / "run.rrd"
    run_with(RerunLog(str(path)))
    assert missing_signals(path) == []


def test_file_without_ticks_is_deleted(tmp_path):
    RerunLog(str(tmp_path / "run.rrd")).close()
    assert not (tmp_path / "run.rrd").exists()


def test_run_streams_to_a_listening_viewer(tmp_path, ports):
    received = tmp_path / "received.rrd"
    viewer = subprocess.Popen(
        [sys.executable, "-m", "rerun", "--save", str(received), "--bind", "127.0.0.1",
         "--port", str(ports[0])],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: rerun_viewer.is_listening("127.0.0.1", ports[0]))
        log = RerunLog("live")
        assert log.page == ""  # The viewer was there, so no web viewer starts.
        run_with(log)
        wait_for(lambda: missing_signals(received) == [])
    finally:
        os.killpg(viewer.pid, signal.SIGTERM)
        viewer.wait(timeout=10)


def test_live_starts_the_web_viewer_on_this_machine_only(ports):
    log = RerunLog("live")
    assert log.page.startswith(f"http://127.0.0.1:{ports[1]}?url=rerun%2Bhttp%3A%2F%2F127.0.0.1")
    with urllib.request.urlopen(log.page, timeout=10) as page:
        assert b"Rerun" in page.read()
    for port in ports:
        with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=1):
            pass
    run_with(log)
    for port in ports:
        wait_for(lambda port=port: not rerun_viewer.is_listening("127.0.0.1", port))


def test_used_web_port_is_reported(ports):
    message = f"another program uses the port {ports[1]}"
    with socket.create_server(("127.0.0.1", ports[1])), pytest.raises(ConfigError, match=message):
        RerunLog("live")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("run.txt", r"rerun=run.txt must be a file that ends in .rrd, live, or the address"),
        ("rerun+http://127.0.0.1:1/proxy", "no viewer listens there"),
        ("rerun+http://127.0.0.1/proxy", "must look like rerun"),
        ("rerun+http://127.0.0.1:99999/proxy", "must look like rerun"),
        ("rerun+http://127.0.0.1:9876", "must look like rerun"),
    ],
)
def test_unusable_targets(target, message):
    with pytest.raises(ConfigError, match=message):
        RerunLog(target)


def test_existing_file_is_kept(tmp_path):
    path = tmp_path / "run.rrd"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="exists; give another file name"):
        RerunLog(str(path))
    assert path.read_text() == "mine"
