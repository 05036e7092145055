"""Checkpoints that are no paths: models of the package, and models on the Hugging Face Hub."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ebt_policy.errors import ConfigError
from ebt_policy.io import hub

PREFIX = "pretrained:"
# Everything that `Model.from_checkpoint` reads; no code and no pickles are downloaded.
HUB_FILES = (
    "model.safetensors", "config.yaml", "format_version", "normalizer.json", "tokenizer.json",
)  # fmt: skip


def pretrained_names() -> list[str]:
    """Return the names of the models that ship with the package."""
    folder = Path(str(files("ebt_policy").joinpath("pretrained")))
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def local_checkpoint(source: str | Path) -> Path:
    """Return the folder of ``pretrained:NAME`` or ``hf://USER/NAME[@REVISION]``.

    Any other path is returned unchanged. A repository on the Hub is downloaded once.

    Raises:
        ConfigError: no model of this name ships with the package.
        HubError: the repository cannot be downloaded.
    """
    text = str(source)
    if text.startswith(hub.PREFIX):
        return hub.download(text, "model", HUB_FILES)
    if not text.startswith(PREFIX):
        return Path(source)
    name = text.removeprefix(PREFIX)
    if name not in pretrained_names():
        raise ConfigError(
            f"{source} is unknown; there are {', '.join(PREFIX + n for n in pretrained_names())}."
        )
    return Path(str(files("ebt_policy").joinpath("pretrained", name)))
