"""Gymnasium environments and the seeded rollouts that score a policy in them.

Importing this package registers the environments and nothing more: the simulators are imported by
`gymnasium.make`, so a program that only trains never loads one.
"""

from __future__ import annotations

import gymnasium

from envs.scenes import METAWORLD, ROBOSUITE

_TASKS = {
    "PushT-v0": ("envs.push_t:PushTEnv", 300, {}),
    "PushTImage-v0": ("envs.push_t:PushTEnv", 300, {"pixels": True}),
    "AdroitDoor-v0": ("envs.adroit_env:AdroitDoorEnv", 300, {}),
    **{
        f"{scene}-v0": ("envs.robosuite_env:RobosuiteEnv", steps, {"scene": scene})
        for scene, steps in ROBOSUITE.items()
    },
    **{
        f"MetaWorld-{scene}-v3": ("envs.metaworld_env:MetaWorldEnv", 500, {"scene": scene})
        for scene in METAWORLD
    },
}

for _name, (_entry, _steps, _kwargs) in _TASKS.items():
    gymnasium.register(f"ebt_policy/{_name}", _entry, max_episode_steps=_steps, kwargs=_kwargs)


def registered() -> list[str]:
    """Return the gymnasium ids of all environments here."""
    return [f"ebt_policy/{name}" for name in _TASKS]
