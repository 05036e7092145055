"""Selection of the OpenGL backend that MuJoCo uses to render without a screen.

MuJoCo reads the environment variable MUJOCO_GL once, when it is imported. A broken backend fails
only when the first frame is rendered, so a child process tests each backend first.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
from typing import Any

from ebt_policy.envs.errors import RenderingError

BACKENDS = ("egl", "osmesa")  # EGL renders on a GPU, OSMesa on the CPU.
NO_BACKEND = "disable"  # value of MUJOCO_GL that disables rendering
_TRIAL_PROGRAM = "import mujoco; c = mujoco.GLContext(16, 16); c.make_current(); c.free()"
_TIMEOUT_S = 60.0


def choose_backend() -> str:
    """Set MUJOCO_GL to the first backend that works, unless it is already set.

    Call it before MuJoCo is imported (see `import_mujoco`). On systems other than Linux, MuJoCo has
    only one backend and the variable is not changed.

    Returns:
        The name of the backend, "disable" if none works, or "" on systems other than Linux.
    """
    backend = os.environ.get("MUJOCO_GL", "")
    if not backend and sys.platform == "linux":
        backend = next((name for name in BACKENDS if _works(name)), NO_BACKEND)
        os.environ["MUJOCO_GL"] = backend  # Child processes inherit it and skip the test.
    if "torch" in sys.modules and "mujoco" not in sys.modules and backend in BACKENDS:
        # Mesa (EGL or OSMesa) and PyTorch's compiler have an LLVM each. The process crashes if
        # PyTorch's is loaded second, for example when a policy is loaded after the environment.
        with contextlib.suppress(Exception):  # It may be absent or broken.
            importlib.import_module("triton")
    return backend


def import_mujoco() -> Any:
    """Return the module mujoco, imported after `choose_backend`.

    The code of this package imports MuJoCo here or calls `choose_backend` before, so that frames
    can be rendered whoever imports it first.

    Raises:
        ModuleNotFoundError: MuJoCo is not installed.
    """
    choose_backend()
    return importlib.import_module("mujoco")


def require_rendering() -> None:
    """Check that frames can be rendered.

    Raises:
        RenderingError: no OpenGL backend works.
    """
    if choose_backend() == NO_BACKEND:
        raise RenderingError(
            "MuJoCo cannot render frames: neither EGL (GPU driver) nor OSMesa works. Install "
            "OSMesa (Debian: apt-get install libosmesa6), or set MUJOCO_GL to a backend that works."
        )


def _works(backend: str) -> bool:
    """Return whether a child process can create an OpenGL context with this backend."""
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
