"""Cache for long evaluations: each result is stored once it is measured, and then reused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ebt_policy.errors import OutputError
from ebt_policy.io.atomic_write import atomic_write
from ebt_policy.io.download import cache_dir
from ebt_policy.models.base import checkpoint_folder
from ebt_policy.renamed_options import with_new_names


class ResultCache:
    """A JSONL file with a line for each result.

    A line has an identity and a result. The identity is a ``key`` together with everything that the
    result depends on, such as a hash of the weights.

    A line that cannot be written to the file, for example on a full disk, is written to the cache
    folder. It is read from there the next time.

    Args:
        file: the JSONL file, in an existing folder. An incomplete line of an interrupted run is
            removed.
        result_key: key of the result in a line.
    """

    def __init__(self, file: Path, result_key: str) -> None:
        self.file, self.result_key = file, result_key
        place = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]
        self._spare = cache_dir() / "unwritten" / f"{place}.jsonl"
        text = file.read_text("utf-8") if file.is_file() else ""
        spare = self._spare.read_text("utf-8") if self._spare.is_file() else ""
        self._lines: list[dict[str, Any]] = []
        complete = ""
        for line in [*text.splitlines(), *spare.splitlines()]:
            with suppress(json.JSONDecodeError):
                self._lines.append(_with_new_names(json.loads(line)))
                complete += line + "\n"
        if complete != text:
            atomic_write(file, complete)
            self._spare.unlink(missing_ok=True)

    def get(self, identity: Mapping[str, Any]) -> Any:
        """Return the last result with an identity; None if there is none.

        Args:
            identity: values as read back from JSON, so with lists instead of tuples.
        """
        for line in reversed(self._lines):
            if identity.items() <= line.items():
                return line[self.result_key]
        return None

    def add(self, identity: Mapping[str, Any], result: Any) -> None:
        """Store a result.

        Raises:
            OutputError: the file cannot be written; the result is stored in the cache folder.
        """
        line = {**identity, self.result_key: result}
        self._lines.append(line)
        try:
            _append(self.file, line)
        except OSError as error:
            self._spare.parent.mkdir(parents=True, exist_ok=True)
            _append(self._spare, line)
            raise OutputError(
                f"{self.file} cannot be written ({error.strerror or error}). The last result is "
                f"stored in {self._spare}; free some space, then run the same command again to "
                "measure only the rest."
            ) from error

    def get_or_compute(self, identity: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """Return the stored result; if there is none, compute it and store it."""
        if (result := self.get(identity)) is None:
            result = compute()
            self.add(identity, result)
        return result


def _with_new_names(line: dict[str, Any]) -> dict[str, Any]:
    """Return a line with the current names of the inference options."""
    if not line.get("inference"):
        return line
    config = with_new_names({"model": {"inference": line["inference"]}})
    return line | {"inference": config["model"]["inference"]}


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def fingerprint(run: Path) -> str:
    """Return a short hash of the weights and the configuration of a run."""
    if run.is_file():  # a checkpoint of robomimic
        return hashlib.sha256(run.read_bytes()).hexdigest()[:16]
    folder, digest = checkpoint_folder(run), hashlib.sha256()
    for name in ("model.safetensors", "config.yaml", "normalizer.json"):
        if (folder / name).exists():  # only policies have a normalizer
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]
