"""Upload of a policy to the Hugging Face Hub, with a generated model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ebt_policy.errors import ConfigError
from ebt_policy.io import hub
from ebt_policy.io.paths import reason
from ebt_policy.models.base import checkpoint_folder
from ebt_policy.policies.base import Policy, load_policy
from ebt_policy.policies.model_card import data_source, model_card

FIGURE = "training.svg"


def write_hub_folder(
    checkpoint: str | Path, folder: Path, name: str, *, licence: str, units: str | None = None
) -> Policy:
    """Write the files of a repository into an empty folder: weights, configuration, model card.

    The weights are safetensors. There is no code, no pickle and no state of the trainer. The
    configuration is written as YAML, which the package reads, and as JSON.

    Args:
        checkpoint: a checkpoint (see `checkpoint_folder`); a run folder also has an evaluation and
            a training curve.
        folder: an empty folder.
        name: ``USER/NAME`` of the repository.
        licence, units: see `model_card`.

    Returns:
        The policy.

    Raises:
        CheckpointError: there is no policy at the path.
    """
    source = checkpoint_folder(checkpoint)
    run = source.parent.parent if source.parent.name == "checkpoints" else source
    policy = load_policy(source)
    policy.config["task"] = {**policy.config["task"], "path": data_source(policy) or None}
    policy.save(folder)
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    has_figure = (run / FIGURE).is_file()
    if has_figure:
        shutil.copy(run / FIGURE, folder / FIGURE)
    card = model_card(
        policy, name, licence=licence, units=units, summary=_summary_of(run),
        figure=FIGURE if has_figure else None,
    )  # fmt: skip
    (folder / "README.md").write_text(card, "utf-8")
    return policy


def push_to_hub(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload a folder of `write_hub_folder` to a repository, which is created if necessary.

    Args:
        folder: the folder.
        name: ``USER/NAME`` of the repository.
        private: whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        HubError: the upload failed.
    """
    from huggingface_hub import HfApi  # slow to import

    api = HfApi(library_name="ebt_policy")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Upload a policy of ebt_policy"
        )
    except Exception as error:  # errors of the Hub's client and its HTTP library share no base
        raise hub.HubError(
            f"{name} cannot be uploaded ({reason(error)}); log in with `hf auth login`, and check "
            "the name and the network."
        ) from error
    return str(commit.commit_url)


def check_repository(name: str | None) -> str:
    """Return the name of a repository.

    Raises:
        ConfigError: it does not have the form ``USER/NAME``.
    """
    if not name or not hub.is_repository_name(name):
        raise ConfigError(f"repo must be USER/NAME, got {name}.")
    return name


def _summary_of(run: Path) -> dict[str, Any] | None:
    """Return the entry of a run in its own evaluation, None without one."""
    file = run / "evaluation" / "summary.json"
    try:
        entries = json.loads(file.read_text("utf-8"))["entries"]
        return dict(entries[0])
    except (OSError, ValueError, LookupError, TypeError):
        return None
