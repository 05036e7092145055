"""Gymnasium environments, scripted experts, perturbations and seeded rollouts.

Importing this package only registers the environments. `gymnasium.make` imports the simulator, so a
program that only trains never loads one.
"""

from __future__ import annotations

import gymnasium

from ebt_policy.envs.task_names import METAWORLD, ROBOSUITE

_TASKS = {
    "PushT-v0": ("ebt_policy.envs.push_t_env:PushTEnv", 300, {}),
    "PushTImage-v0": ("ebt_policy.envs.push_t_env:PushTEnv", 300, {"pixels": True}),
    "AdroitDoor-v0": ("ebt_policy.envs.adroit_env:AdroitDoorEnv", 300, {}),
    **{
        f"{scene}-v0": ("ebt_policy.envs.robosuite_env:RobosuiteEnv", steps, {"scene": scene})
        for scene, steps in ROBOSUITE.items()
    },
    **{
        f"MetaWorld-{scene}-v3": (
            "ebt_policy.envs.metaworld_env:MetaWorldEnv",
            500,
            {"scene": scene},
        )
        for scene in METAWORLD
    },
}

for _name, (_entry, _steps, _kwargs) in _TASKS.items():
    gymnasium.register(f"ebt_policy/{_name}", _entry, max_episode_steps=_steps, kwargs=_kwargs)


def registered_env_ids() -> list[str]:
    """Return the gymnasium ids of all environments of this package."""
    return [f"ebt_policy/{name}" for name in _TASKS]
