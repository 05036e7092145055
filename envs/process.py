"""Start a rollout worker and talk to it.

A worker is a plain subprocess that shares a pipe with its parent: multiprocessing's own processes
import the parent's main module again, and torch with it. POSIX only.
"""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import Pipe
from typing import Any

from ebt_policy.envs.env_spec import EnvSpec


class WorkerProcess:
    """The parent's end of one worker process, which plays in the environment of `spec`."""

    def __init__(self, spec: EnvSpec):
        self._connection, theirs = Pipe()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"from ebt_policy.envs.worker import main; main({theirs.fileno()})",
            ],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        )
        theirs.close()
        self.send(spec)

    def fileno(self) -> int:
        """So that `multiprocessing.connection.wait` can wait for several workers."""
        return self._connection.fileno()

    def send(self, message: Any) -> None:
        """Send an `EpisodeRequest`, or the chunk (T, A) that the worker waits for.

        Raises:
            RuntimeError: the worker failed; its traceback is in the message.
        """
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise RuntimeError(self._fate()) from None

    def receive(self) -> Any:
        """The worker's next observations (To, Do), or the finished episode, `EpisodeOutcome`.

        Raises:
            RuntimeError: the worker failed; its traceback is in the message.
        """
        try:
            kind, content = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError(self._fate()) from None
        if kind == "error":
            raise RuntimeError(f"a rollout worker failed:\n{content}")
        return content

    def end(self, kill: bool) -> None:
        """Ask the worker to end; with `kill`, whatever it is doing."""
        if kill:
            self._process.terminate()
        self._connection.close()  # an idle worker ends when it sees the pipe closed

    def join(self) -> None:
        """Wait for the worker's end, at most 5 s."""
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _fate(self) -> str:
        try:  # it may have left its traceback in the pipe
            while self._connection.poll():
                kind, content = self._connection.recv()
                if kind == "error":
                    return f"a rollout worker failed:\n{content}"
        except (EOFError, OSError):
            pass
        return f"a rollout worker ended with exit code {self._process.wait()}; see its output above"
