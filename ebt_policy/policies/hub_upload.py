"""Upload of a policy to the Hugging Face Hub, with a generated model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ebt_policy.io import hub
from ebt_policy.io.paths import reason
from ebt_policy.models.base import checkpoint_folder
from ebt_policy.policies.base import Policy
from ebt_policy.policies.loading import load_policy
from ebt_policy.policies.model_card import model_card

FIGURE = "training.svg"
LOCAL_OPTIONS = ("path", "teacher")  # options whose values are paths of the machine that trained


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
    if checkpoint_folder(run) != source:
        run = source  # The evaluation and the curve belong to a later checkpoint.
    policy = load_policy(source)
    policy.save(folder)
    # What was written is cleaned, because it also has the configurations of composed policies.
    config = without_folders(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    has_figure = (run / FIGURE).is_file()
    if has_figure:
        shutil.copy(run / FIGURE, folder / FIGURE)
    card = model_card(
        policy, config, name, licence=licence, units=units, summary=_summary_of(run),
        figure=FIGURE if has_figure else None,
    )  # fmt: skip
    (folder / "README.md").write_text(card, "utf-8")
    return policy


def without_folders(config: Any, key: str = "") -> Any:
    """Return a configuration in which paths have no folders, only a name.

    >>> without_folders({"task": {"path": ["/home/me/a", "hf://me/b@1"], "name": "dataset"}})
    {'task': {'path': ['a', 'hf://me/b@1'], 'name': 'dataset'}}
    """
    if isinstance(config, dict):
        return {name: without_folders(value, name) for name, value in config.items()}
    if isinstance(config, list):
        return [without_folders(value, key) for value in config]
    is_path = key in LOCAL_OPTIONS and isinstance(config, str)
    return Path(config).name if is_path and not config.startswith(hub.PREFIX) else config


def push_to_hub(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload a folder of `write_hub_folder` to a repository, which is created if necessary.

    Files of an earlier upload are replaced; other files of the repository stay.

    Args:
        folder: the folder.
        name: ``USER/NAME`` of the repository.
        private: whether the repository must be private.

    Returns:
        The address of the commit.

    Raises:
        HubError: the upload failed, or the repository exists and is public although `private` is
            true. Nothing is uploaded then.
    """
    from huggingface_hub import HfApi  # slow to import

    api = HfApi(library_name="ebt_policy")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        is_public = private and not api.model_info(name).private
        if not is_public:
            commit = api.upload_folder(
                repo_id=name, folder_path=folder, delete_patterns=[FIGURE],
                commit_message="Upload a policy of ebt_policy",
            )  # fmt: skip
            return str(commit.commit_url)
    except Exception as error:  # errors of the Hub's client and its HTTP library share no base
        raise hub.HubError(
            f"{name} cannot be uploaded ({reason(error)}); log in with `hf auth login`, and check "
            "the name and the network."
        ) from error
    raise hub.HubError(f"{name} exists and is public, but private=true; make it private first.")


def _summary_of(run: Path) -> dict[str, Any] | None:
    """Return the entry of a run in its own evaluation, None without one."""
    file = run / "evaluation" / "summary.json"
    try:
        entries = json.loads(file.read_text("utf-8"))["entries"]
        return dict(entries[0])
    except (OSError, ValueError, LookupError, TypeError):
        return None
