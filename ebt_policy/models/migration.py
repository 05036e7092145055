"""Migration of checkpoints and run settings from earlier versions to the current one."""

from __future__ import annotations

from typing import Any

from ebt_policy.renamed_options import with_new_names

LEGACY_ENV_PREFIX = "envs:"  # version 1 named the module that registers an environment


def migrate_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return stored settings of any version in the format of the current version.

    Settings of the current version are returned unchanged.
    """
    config = with_new_names(config)
    task = config.get("task")
    if not isinstance(task, dict):
        return config
    if "domain" not in config:
        name = task.get("name")
        config["domain"] = name if name in ("text", "image", "video") else "policy"
    env = task.get("env")
    if isinstance(env, dict) and isinstance(env.get("env_id"), str):
        env_id = env["env_id"].removeprefix(LEGACY_ENV_PREFIX)
        config["task"] = {**task, "env": {**env, "env_id": env_id}}
    return config
