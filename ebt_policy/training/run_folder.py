"""The folder of a training run, which one process owns and which never mixes two runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ebt_policy.errors import ConfigError
from ebt_policy.io.atomic_write import atomic_write
from ebt_policy.io.output import check_free_space, output_folder
from ebt_policy.io.paths import reason
from ebt_policy.models.migration import migrate_config
from ebt_policy.training.checkpoint import newest_checkpoint

# Sections that must not change when a run resumes.
COMPARED_SECTIONS = ("task", "model", "objective", "size", "vision", "seed", "train")
# Options of these sections that may change, because the model learns the same, up to rounding.
RESUMABLE_OVERRIDES = ("checkpoint_every", "eval_every", "log_every", "compile", "inference")
# Options that later versions added -> the value that runs without them were trained with.
ADDED_OPTIONS = {
    "task.episodes": None,
    "model.energy": "product",
    "model.teacher": None,
    **{
        f"vision.{name}": 0.0
        for name in ("brightness", "contrast", "saturation", "hue", "blur", "erase")
    },
}
# Weights, their average (stored twice) and two moments of AdamW, in single precision, in three
# checkpoints: two are kept while one is written.
CHECKPOINT_BYTES_PER_PARAMETER = 3 * 20


@contextmanager
def prepare_run_dir(run_dir: Path, config: dict[str, Any], *, is_main: bool) -> Iterator[None]:
    """Lock a run folder while a run writes into it.

    Args:
        run_dir: folder of the run.
        config: resolved configuration.
        is_main: whether this process writes; other processes only check the folder.

    Raises:
        ConfigError: if the folder cannot be written, another program writes into it, or it holds
            a run and ``resume`` is false or the settings differ.
    """
    if not is_main:
        check_resumable(run_dir, config)
        yield
        return
    with output_folder(run_dir, "run_dir"):
        check_resumable(run_dir, config)
        yield


def check_resumable(run_dir: Path, config: dict[str, Any]) -> None:
    """Check that a folder holds no run, or one that may be resumed with the same settings.

    Raises:
        ConfigError: if ``resume`` is false, or settings differ; the message names them.
    """
    if newest_checkpoint(run_dir) is None:
        return
    if not config["resume"]:
        raise ConfigError(
            f"{run_dir} already holds a run: add resume=true to resume it, or give another "
            "run_dir=..."
        )
    stored = migrate_config(_stored_config(run_dir))
    changed = [
        f"{section}.{option}".rstrip(".")
        for section in COMPARED_SECTIONS
        for option in _differing_options(section, stored.get(section), config.get(section))
        if option not in RESUMABLE_OVERRIDES
    ]
    if changed:
        raise ConfigError(
            f"{run_dir} was trained with other settings of {', '.join(changed)} (see its "
            "config.yaml); give another run_dir=... for the new settings."
        )


def save_run_config(run_dir: Path, config: dict[str, Any], parameters: int) -> None:
    """Check that the checkpoints fit on the disk, and write ``config.yaml``.

    Args:
        run_dir: folder of the run.
        config: resolved configuration.
        parameters: number of parameters of the model.

    Raises:
        ConfigError: if the disk is too full.
    """
    check_free_space(run_dir, CHECKPOINT_BYTES_PER_PARAMETER * parameters, "run_dir")
    atomic_write(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))


def _stored_config(run_dir: Path) -> dict[str, Any]:
    file = run_dir / "config.yaml"
    try:
        stored: Any = OmegaConf.to_container(OmegaConf.load(file))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(
            f"{file} cannot be read ({reason(error)}), so the run cannot be resumed with its "
            "settings; give another run_dir=..."
        ) from error
    if not isinstance(stored, dict):
        raise ConfigError(f"{file} holds no settings of a run; give another run_dir=...")
    return stored


def _differing_options(section: str, before: Any, now: Any) -> list[str]:
    """Return the options of a section that differ; [""] if a section without options differs."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [] if before == now else [""]
    absent = object()

    def differs(name: str) -> bool:
        default = ADDED_OPTIONS.get(f"{section}.{name}", absent)
        return before.get(name, default) != now.get(name, absent)

    return [name for name in {**before, **now} if differs(name)]
