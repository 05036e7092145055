"""Composition of a configuration from the files in ``configs/`` and command-line overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from hydra import compose, initialize_config_module
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ebt_policy.errors import ConfigError, did_you_mean

CONFIGS = "ebt_policy.configs"
CUTOFF = 0.5  # least similarity of a suggested name


def compose_config(config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return a composed configuration with all references resolved.

    Args:
        config_name: name of the file in ``configs/``, such as ``train``.
        overrides: overrides in hydra's grammar, such as ``task=lift`` or ``train.lr=1e-3``.

    Raises:
        ConfigError: if an override is malformed, or names an unknown option or value.
    """
    config, _ = compose_with_choices(config_name, overrides)
    return config


def compose_with_choices(
    config_name: str, overrides: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Return a composed configuration, and the chosen file of each group in it.

    Args:
        config_name, overrides: see `compose_config`.

    Raises:
        ConfigError: see `compose_config`.
    """
    try:
        cfg = _compose(config_name, overrides)
        choices: Any = OmegaConf.to_container(cfg.hydra.runtime.choices)
        _drop_hydra(cfg)
        config: Any = OmegaConf.to_container(cfg, resolve=True)
    except MissingConfigException as error:
        raise ConfigError(_unknown_choice(error)) from error
    except OverrideParseException as error:
        raise ConfigError(
            f"{error.override!r} cannot be parsed; write name=value, with quotes around values "
            "that contain brackets, commas or spaces."
        ) from error
    except HydraException as error:
        raise ConfigError(_explain(str(error), config_name, overrides)) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration is invalid: {str(error).splitlines()[0]}") from error
    return config, choices


def group_choices(group: str) -> list[str]:
    """Return the names of the files of a group, such as ``task``."""
    folder = files(CONFIGS).joinpath(group)
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def group_description(group: str, choice: str) -> str:
    """Return the description of a group's file, which is the comment in its first line."""
    text = files(CONFIGS).joinpath(f"{group}/{choice}.yaml").read_text("utf-8")
    first_line = text.partition("\n")[0]
    return first_line.removeprefix("# ") if first_line.startswith("# ") else ""


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the options of a configuration by dotted name."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            result |= flatten(value, f"{name}.")
        else:
            result[name] = value
    return result


def _compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    with initialize_config_module(CONFIGS, version_base="1.3"):
        return compose(config_name, overrides=list(overrides), return_hydra_config=True)


def _drop_hydra(cfg: DictConfig) -> None:
    with open_dict(cfg):
        del cfg["hydra"]


def _unknown_choice(error: MissingConfigException) -> str:
    group, _, name = str(error.missing_cfg_file).partition("/")
    options = list(error.options or ())
    name, _, domain = name.partition("/")
    if domain:  # a model or an objective, which has one file per domain
        return f"{group}={name} is not available for {domain}; it is for {', '.join(options)}."
    suggestion = did_you_mean(name, options, CUTOFF)
    return f"{group}={name} is unknown.{suggestion} Choose one of {', '.join(options)}."


def _explain(message: str, config_name: str, overrides: Sequence[str]) -> str:
    """Return one sentence for an error of hydra's composition."""
    if missing := re.match(r"You must specify '([^']+)'", message):
        group = missing[1]
        return f"missing required option {group}=NAME, one of {', '.join(group_choices(group))}."
    if unknown := re.match(r"Could not override '([^'@]+)", message):
        name = unknown[1]
        suggestion = did_you_mean(name, _option_names(config_name, overrides), CUTOFF)
        return f"unknown option {name}.{suggestion} Add --help for all options."
    return message.splitlines()[0]


def _option_names(config_name: str, overrides: Sequence[str]) -> list[str]:
    """Return the options and groups of the configuration without the invalid overrides."""
    choices = []
    for override in overrides:
        name, _, value = override.partition("=")
        folder = files(CONFIGS).joinpath(name)
        if "." not in name and folder.is_dir() and value in group_choices(name):
            choices.append(override)
    try:
        cfg = _compose(config_name, choices)
        groups = [group for group in cfg.hydra.runtime.choices if "/" not in group]
        _drop_hydra(cfg)
        options: Any = OmegaConf.to_container(cfg)
    except (HydraException, OmegaConfBaseException):
        return []
    return [*groups, *flatten(options)]
