"""Gymnasium environments and the seeded rollouts that score a policy in them.

Importing this package registers the environments and nothing more: the simulators are imported by
`gymnasium.make`, so a program that only trains never loads one.
"""

from __future__ import annotations

import gymnasium

gymnasium.register(
    id="ebt_policy/PushT-v0",
    entry_point="envs.push_t:PushTEnv",
    max_episode_steps=300,
)
gymnasium.register(
    id="ebt_policy/PushTImage-v0",
    entry_point="envs.push_t:PushTEnv",
    max_episode_steps=300,
    kwargs={"pixels": True},
)
