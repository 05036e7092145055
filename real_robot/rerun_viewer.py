"""A live view of a run in Rerun: a viewer that already listens, or one in the browser."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO
from urllib.parse import quote, urlsplit

from ebt_policy.errors import ConfigError

LIVE = "live"  # value of the option: view on this machine
LOOPBACK = "127.0.0.1"
STREAM_PORT = 9876  # Rerun's default, on which its viewer listens
WEB_PORT = 9090  # Rerun's default, which the browser opens
START_S = 20.0  # longest time for the web viewer to start, s


class RerunViewer:
    """The viewer that a run streams to.

    `LIVE` streams to a viewer that listens on this machine, for example one of another machine
    whose port is forwarded here. Without one, it starts the web viewer, which only this machine can
    reach.

    Args:
        target: `LIVE`, or the address of a viewer, such as ``rerun+http://10.0.0.2:9876/proxy``.

    Attributes:
        url: address that receives the stream.
        page: address to open in a browser; "" without the web viewer.

    Raises:
        ConfigError: there is no viewer at the address, or the web viewer does not start.
    """

    def __init__(self, target: str) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.page = ""
        self.url = f"rerun+http://{LOOPBACK}:{STREAM_PORT}/proxy" if target == LIVE else target
        if not is_listening(*host_and_port(self.url)):
            if target != LIVE:
                raise ConfigError(
                    f"rerun={target}: no viewer listens there; start one with the command rerun, "
                    f"or use rerun={LIVE}."
                )
            self._start()
        if target == LIVE and is_listening(LOOPBACK, WEB_PORT):
            self.page = f"http://{LOOPBACK}:{WEB_PORT}?url={quote(self.url, safe='')}"

    def close(self) -> None:
        """End the web viewer. Pages that are open keep what they have received."""
        if self._process is not None:
            self._end(self._process)
            self._process = None

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        """End the viewer, which is a child of the process that was started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
                return

    def _start(self) -> None:
        """Start the web viewer, and wait until it listens."""
        if is_listening(LOOPBACK, WEB_PORT):
            raise ConfigError(
                f"rerun={LIVE}: another program uses the port {WEB_PORT} of the web viewer; end "
                "it, or start the viewer with the command rerun."
            )
        command = [
            sys.executable, "-m", "rerun", "--serve-web", "--bind", LOOPBACK,
            "--port", str(STREAM_PORT), "--web-viewer-port", str(WEB_PORT),
        ]  # fmt: skip
        with TemporaryFile() as output:
            # A session of its own, because Ctrl-C must not end the viewer before the run.
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True
            )
            try:
                self._await_start(output)
            except BaseException:  # also Ctrl-C
                self.close()
                raise

    def _await_start(self, output: IO[bytes]) -> None:
        """Wait until the web viewer listens; ``output`` has its messages."""
        assert self._process is not None
        end = time.monotonic() + START_S
        while not (is_listening(LOOPBACK, STREAM_PORT) and is_listening(LOOPBACK, WEB_PORT)):
            if self._process.poll() is not None or time.monotonic() > end:
                output.seek(0)
                last = output.read().decode(errors="replace").strip().splitlines()[-1:]
                raise ConfigError(
                    f"rerun={LIVE}: the web viewer did not start ({''.join(last)}); write a file "
                    "with rerun=run.rrd instead."
                )
            time.sleep(0.05)


def is_address(target: str) -> bool:
    """Return whether a value of the option names a viewer instead of a file.

    >>> is_address("live"), is_address("rerun+http://10.0.0.2:9876/proxy"), is_address("run.rrd")
    (True, True, False)
    """
    return target == LIVE or bool(re.match(r"rerun(\+https?)?://", target))


def host_and_port(url: str) -> tuple[str, int]:
    """Return the host and the port of the address of a viewer.

    Raises:
        ConfigError: the address is invalid.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.path != "/proxy":
        raise ConfigError(
            f"rerun={url} must look like rerun+http://{LOOPBACK}:{STREAM_PORT}/proxy."
        )
    return host, port


def is_listening(host: str, port: int) -> bool:
    """Return whether a program accepts connections at this address."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def new_recording(path: Path) -> Path:
    """Create the file of a recording, and return its path.

    Raises:
        ConfigError: it exists or cannot be created.
    """
    if path.suffix != ".rrd":
        raise ConfigError(
            f"rerun={path} must be a file that ends in .rrd, {LIVE}, or the address of a viewer."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)
    except FileExistsError as error:
        raise ConfigError(f"rerun={path} exists; give another file name.") from error
    except OSError as error:
        raise ConfigError(f"rerun={path} cannot be written ({error.strerror}).") from error
    return path
