"""Manipulation tasks that stand on one of gymnasium's own MuJoCo environments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from ebt_policy.envs.manipulation import ManipulationEnv
from ebt_policy.envs.rendering import choose_backend

choose_backend()  # before MuJoCo is imported
import mujoco as _mujoco  # noqa: E402

mujoco: Any = _mujoco  # its compiled parts have no types that checkers see
_DYNAMICS = mujoco.mjtState.mjSTATE_INTEGRATION  # all that the next step depends on


class MujocoManipulationEnv(ManipulationEnv):
    """Frames and the physical state of an environment that holds a `model` and `data`.

    Args:
        sim_env: the environment that is wrapped.
        layout, grasps, cameras, image_size, render_mode: as in `ManipulationEnv`.
    """

    upside_down: tuple[str, ...] = ()  # cameras that are mounted the wrong way up

    def __init__(
        self,
        sim_env: Any,
        layout: dict[str, int],
        *,
        grasps: bool = False,
        cameras: Sequence[str] | None,
        image_size: int,
        render_mode: str | None,
    ) -> None:
        self.sim_env = sim_env
        width = sim_env.action_space.shape
        super().__init__(
            spaces.Box(-1.0, 1.0, width, np.float32),
            layout,
            [sim_env.model.camera(i).name for i in range(sim_env.model.ncam)],
            grasps=grasps,
            cameras=cameras,
            image_size=image_size,
            render_mode=render_mode,
        )
        self._renderers: dict[int, Any] = {}

    def frame(self, camera: str, size: int) -> np.ndarray:
        if size not in self._renderers:
            self._renderers[size] = self._renderer(size)
        renderer = self._renderers[size]
        renderer.update_scene(self.sim_env.data, camera)
        drawn = renderer.render()
        return np.ascontiguousarray(drawn[::-1, ::-1]) if camera in self.upside_down else drawn

    def _renderer(self, size: int) -> Any:
        """Frames of `render_size`, for people, have shadows and smooth edges; of other sizes, for
        policies, neither: on a CPU they take nine tenths of the time."""
        pretty, quality = size == self.render_size, self.sim_env.model.vis.quality
        smooth = quality.offsamples
        quality.offsamples = smooth if pretty else 0
        renderer = mujoco.Renderer(self.sim_env.model, size, size)
        quality.offsamples = smooth
        if not pretty:
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        return renderer

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
        self.sim_env.close()

    def _dynamics(self) -> np.ndarray:
        state = np.empty(mujoco.mj_stateSize(self.sim_env.model, _DYNAMICS))
        mujoco.mj_getState(self.sim_env.model, self.sim_env.data, state, _DYNAMICS)
        return state

    def _set_dynamics(self, state: np.ndarray) -> None:
        mujoco.mj_setState(self.sim_env.model, self.sim_env.data, state, _DYNAMICS)
        self.settle()

    def settle(self) -> None:
        """Compute all places and orientations from the joints, without letting time pass."""
        mujoco.mj_forward(self.sim_env.model, self.sim_env.data)
