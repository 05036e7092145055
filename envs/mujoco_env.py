"""Base class of the manipulation tasks that wrap a gymnasium MuJoCo environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from ebt_policy.envs.manipulation_env import ManipulationEnv
from ebt_policy.envs.rendering import import_mujoco

mujoco = import_mujoco()
_DYNAMICS = mujoco.mjtState.mjSTATE_INTEGRATION  # all values that the next step depends on


class MujocoManipulationEnv(ManipulationEnv):
    """A manipulation task on an environment that has a MuJoCo `model` and `data`.

    Args:
        sim_env: the wrapped environment, with actions in [-1, 1].
        layout, grasps, cameras, image_size, render_mode: as in `ManipulationEnv`.
    """

    upside_down: tuple[str, ...] = ()  # cameras that are mounted upside down

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
        image = renderer.render()
        return np.ascontiguousarray(image[::-1, ::-1]) if camera in self.upside_down else image

    def _renderer(self, size: int) -> Any:
        """Build a renderer for frames of `size` x `size` px.

        Frames of size `render_size` are for people and have shadows and anti-aliasing. All other
        frames have neither, because together they take nine tenths of the rendering time on a CPU.
        """
        is_high_quality, quality = size == self.render_size, self.sim_env.model.vis.quality
        num_samples = quality.offsamples
        quality.offsamples = num_samples if is_high_quality else 0
        renderer = mujoco.Renderer(self.sim_env.model, size, size)
        quality.offsamples = num_samples
        if not is_high_quality:
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        return renderer

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
        self.sim_env.close()

    def _dynamics(self) -> np.ndarray:
        """Return MuJoCo's integration state."""
        state = np.empty(mujoco.mj_stateSize(self.sim_env.model, _DYNAMICS))
        mujoco.mj_getState(self.sim_env.model, self.sim_env.data, state, _DYNAMICS)
        return state

    def _set_dynamics(self, state: np.ndarray) -> None:
        """Restore MuJoCo's integration state."""
        mujoco.mj_setState(self.sim_env.model, self.sim_env.data, state, _DYNAMICS)
        self.settle()

    def settle(self) -> None:
        """Recompute all positions and orientations from the joints, without advancing time."""
        mujoco.mj_forward(self.sim_env.model, self.sim_env.data)
