"""Selection of the OpenGL backend with which MuJoCo renders without a screen.

MuJoCo reads the environment variable MUJOCO_GL once, when it is imported. A backend that does not
work fails only when the first frame is drawn, so a child process tries each backend first.
"""

from __future__ import annotations

import os
import subprocess
import sys

from ebt_policy.envs.errors import RenderingError

BACKENDS = ("egl", "osmesa")  # on a GPU; on the CPU
NO_BACKEND = "disable"  # value of MUJOCO_GL for no rendering at all
_TRIAL_PROGRAM = "import mujoco; c = mujoco.GLContext(16, 16); c.make_current(); c.free()"
_TIMEOUT_S = 60.0


def choose_backend() -> str:
    """Set MUJOCO_GL to the first backend that works, unless it is set.

    Call it before MuJoCo is imported. On systems other than Linux MuJoCo has one backend, and
    nothing is set.

    Returns:
        The backend, "disable" if none works, or "" if MuJoCo chooses.
    """
    backend = os.environ.get("MUJOCO_GL", "")
    if not backend and sys.platform == "linux":
        backend = next((name for name in BACKENDS if _works(name)), NO_BACKEND)
        os.environ["MUJOCO_GL"] = backend  # child processes inherit it and need not try again
    return backend


def require_rendering() -> None:
    """Check that frames can be drawn.

    Raises:
        RenderingError: no backend works; the message says what to install.
    """
    if choose_backend() == NO_BACKEND:
        raise RenderingError(
            "MuJoCo cannot draw frames: neither EGL (of the GPU driver) nor OSMesa works. Install "
            "OSMesa (Debian: apt-get install libosmesa6), or set MUJOCO_GL to a backend that works."
        )


def _works(backend: str) -> bool:
    try:
        process = subprocess.run(
            [sys.executable, "-c", _TRIAL_PROGRAM],
            env={**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return process.returncode == 0
