"""Which OpenGL MuJoCo renders with where there is no screen.

MuJoCo chooses its backend once, when it is imported, by the environment variable MUJOCO_GL; a
backend that does not work fails only when the first frame is drawn. So a child process tries.
"""

from __future__ import annotations

import os
import subprocess
import sys

BACKENDS = ("egl", "osmesa")  # the first draws on a GPU, the second on the CPU
NONE = "disable"  # MuJoCo's word for no rendering at all
_TRIAL = "import mujoco; c = mujoco.GLContext(16, 16); c.make_current(); c.free()"
_TIMEOUT_S = 60.0


class RenderingError(OSError):
    """No OpenGL backend can draw here."""


def choose_backend() -> str:
    """Set MUJOCO_GL to the first backend that works, unless it is set; to be called before MuJoCo
    is imported.

    On systems other than Linux MuJoCo knows by itself, and nothing is set.

    Returns:
        The backend, "disable" where none works, or "" where MuJoCo is left to choose.
    """
    chosen = os.environ.get("MUJOCO_GL", "")
    if not chosen and sys.platform == "linux":
        chosen = next((name for name in BACKENDS if _works(name)), NONE)
        os.environ["MUJOCO_GL"] = chosen  # for child processes, too: they need not try again
    return chosen


def require_rendering() -> None:
    """Say what to do where frames are asked for and cannot be drawn.

    Raises:
        RenderingError: no backend works.
    """
    if choose_backend() == NONE:
        raise RenderingError(
            "MuJoCo cannot draw frames here: neither EGL (a GPU's driver) nor OSMesa works. Install"
            " OSMesa (Debian: apt-get install libosmesa6), or set MUJOCO_GL to a backend that works"
        )


def _works(backend: str) -> bool:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL],
            env={**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
