"""The parent's side of a rollout worker: start the process, exchange messages, end it.

A worker is a plain subprocess that shares a pipe with its parent. A `multiprocessing.Process` would
import the parent's main module again, which would load torch. This works on POSIX systems only.
"""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import Pipe
from typing import Any

from ebt_policy.envs.env_spec import EnvSpec


class WorkerProcess:
    """A worker process that plays episodes in the environment of `spec`."""

    def __init__(self, spec: EnvSpec):
        self._connection, worker_end = Pipe()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"from ebt_policy.envs.worker import main; main({worker_end.fileno()})",
            ],
            pass_fds=[worker_end.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        )
        worker_end.close()
        self.send(spec)

    def fileno(self) -> int:
        """Return the file descriptor, for `multiprocessing.connection.wait`."""
        return self._connection.fileno()

    def send(self, message: Any) -> None:
        """Send an `EpisodeRequest`, or a chunk (T, A) if the worker waits for one.

        Raises:
            RuntimeError: the worker failed; its traceback is in the message.
        """
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise RuntimeError(self._failure()) from None

    def receive(self) -> Any:
        """Return the next message: observations, name -> (To, ...), or an `EpisodeOutcome`.

        Raises:
            RuntimeError: the worker failed; its traceback is in the message.
        """
        try:
            kind, content = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError(self._failure()) from None
        if kind == "error":
            raise RuntimeError(f"a rollout worker failed:\n{content}")
        return content

    def end(self, kill: bool) -> None:
        """Close the pipe, which ends an idle worker; with `kill`, also terminate a busy one."""
        if kill:
            self._process.terminate()
        self._connection.close()

    def join(self) -> None:
        """Wait up to 5 s for the worker to end, then kill it."""
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _failure(self) -> str:
        """Return why the worker ended, with its traceback if it sent one."""
        try:  # The traceback may still be in the pipe.
            while self._connection.poll():
                kind, content = self._connection.recv()
                if kind == "error":
                    return f"a rollout worker failed:\n{content}"
        except (EOFError, OSError):
            pass
        return f"a rollout worker ended with exit code {self._process.wait()}; see its output above"
