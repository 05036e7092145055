"""Convert checkpoints: ``python -m lerobot_policy_ebt.convert SOURCE DESTINATION``.

A checkpoint of ebt_policy becomes a policy of LeRobot, and the other way round.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies import make_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from ebt_policy.cli.composition import compose_config, group_choices
from ebt_policy.errors import ConfigError, UserError
from ebt_policy.io.atomic_write import atomic_folder
from ebt_policy.policies import EnergyPolicy, load_policy
from ebt_policy.policies.hub_upload import without_folders
from ebt_policy.policies.model_card import LEROBOT

from .configuration_ebt import EBTConfig
from .modeling_ebt import EBTPolicy


def to_lerobot(source: str | Path, destination: Path) -> None:
    """Write a checkpoint of an energy policy as a policy of LeRobot.

    The observation becomes ``observation.state``, and each camera ``observation.images.NAME``.

    Raises:
        UserError: the checkpoint cannot be read, or is not an energy policy.
    """
    policy = load_policy(source)
    if type(policy) is not EnergyPolicy:
        raise ConfigError(f"{source} holds model={policy.name}; only model=ebt can be converted.")
    shape, inference = policy.shape, policy.inference
    images = {
        f"{OBS_IMAGES}.{name}": PolicyFeature(FeatureType.VISUAL, (3, *size))
        for name, size in (shape.cameras or {}).items()
    }
    state = PolicyFeature(FeatureType.STATE, (shape.obs_dim,))
    config = EBTConfig(
        n_obs_steps=shape.n_obs_steps,
        horizon=shape.horizon,
        n_action_steps=shape.n_action_steps,
        max_prefix_len=shape.max_prefix_len,
        relative_actions=shape.relative_to is not None,
        size=policy.config["size"]["name"],
        objective=policy.config["objective"]["name"],
        input_features={OBS_STATE: state, **images},
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (shape.action_dim,))},
        num_inference_steps=inference.steps,
        num_candidates=inference.num_candidates,
        normalizer=policy.normalizer.to_json(),
        push_to_hub=False,
        **_camera_options(policy),
    )
    config.sections = without_folders(policy.stored_config) | {"lerobot": config.plug_in_section}
    converted = EBTPolicy(config)
    for model in (converted.model, converted.averaged.module):
        model.load_state_dict(policy.state_dict())
    with atomic_folder(destination) as folder:
        converted.save_pretrained(folder)
        for processor in make_pre_post_processors(config):
            processor.save_pretrained(folder)


def _camera_options(policy: EnergyPolicy) -> dict[str, Any]:
    """Return ``vision`` and ``resize_shape`` of a policy; nothing without cameras."""
    if policy.shape.cameras is None:
        return {}
    sizes = {tuple(size) for size in policy.shape.cameras.values()}
    backbone = policy.config["vision"]["backbone"]
    names = {
        compose_config("train", ["task=dataset", f"vision={name}"])["vision"]["backbone"]: name
        for name in group_choices("vision")
    }
    return {
        "vision": names.get(backbone, backbone),
        "resize_shape": sizes.pop() if len(sizes) == 1 else None,
    }


def to_ebt_policy(source: str | Path, destination: Path) -> None:
    """Write the averaged weights of a policy of LeRobot as a checkpoint of ebt_policy."""
    policy = EBTPolicy.from_pretrained(source)
    model = policy.averaged.module
    if num_updates := int(policy.averaged.n_averaged):
        model.config["trained"] = {"library": LEROBOT, "steps": num_updates}
    with atomic_folder(destination) as folder:
        model.save(folder)


def convert(source: str, destination: str) -> str:
    """Convert a checkpoint in the direction that its files determine; return a message.

    Raises:
        UserError: the destination exists, or the source cannot be converted.
    """
    target = Path(destination)
    if target.exists():
        raise ConfigError(f"DESTINATION={destination} exists; give a new folder.")
    policy_type = _lerobot_type(Path(source))
    if policy_type is None:
        to_lerobot(source, target)
        return f"{destination} is a policy of LeRobot: --policy.path={destination}"
    if policy_type != "ebt":
        raise ConfigError(f"{source} has the policy type {policy_type}; only ebt can be converted.")
    to_ebt_policy(source, target)
    return f"{destination} is a checkpoint of ebt_policy: checkpoint={destination}"


def _lerobot_type(source: Path) -> str | None:
    """Return the type of a policy of LeRobot, None if the folder has none."""
    if (source / "format_version").exists() or not (source / "config.json").exists():
        return None
    return PreTrainedConfig.from_pretrained(source).type


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser("lerobot_policy_ebt.convert", description=__doc__)
    parser.add_argument(
        "source", help="checkpoint or run folder of ebt_policy, pretrained:NAME, or a folder "
        "pretrained_model of LeRobot",
    )  # fmt: skip
    parser.add_argument("destination", help="new folder")
    arguments = parser.parse_args()
    try:
        print(convert(arguments.source, arguments.destination))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
