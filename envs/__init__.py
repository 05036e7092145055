"""Gymnasium environments and the seeded rollouts that score a policy in them.

Importing this package registers the environments and nothing more: the simulators are imported by
`gymnasium.make`, so a program that only trains never loads one.
"""

from __future__ import annotations

import gymnasium

from ebt_policy.envs.task_names import METAWORLD, ROBOSUITE

_TASKS = {
    "PushT-v0": ("ebt_policy.envs.push_t:PushTEnv", 300, {}),
    "PushTImage-v0": ("ebt_policy.envs.push_t:PushTEnv", 300, {"pixels": True}),
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


def registered() -> list[str]:
    """Return the gymnasium ids of all environments here."""
    return [f"ebt_policy/{name}" for name in _TASKS]
