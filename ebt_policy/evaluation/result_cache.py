"""Long evaluations piece by piece: what was measured is stored at once and not measured again."""

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


class ResultCache:
    """A JSONL file with a line for each piece.

    A line holds its ``key``, whatever else must be the same for what was found to hold (such as a
    hash of the weights), and what was found.

    What cannot be written there, as the disk is full, goes to the cache folder, and is found again.

    Args:
        file: in a folder that exists; half a line that a kill left is taken out.
        found: the name in a line of what was found.
    """

    def __init__(self, file: Path, found: str) -> None:
        self.file, self.found = file, found
        place = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]
        self._spare = cache_dir() / "unwritten" / f"{place}.jsonl"
        text = file.read_text("utf-8") if file.is_file() else ""
        spare = self._spare.read_text("utf-8") if self._spare.is_file() else ""
        self._lines: list[dict[str, Any]] = []
        whole = ""
        for line in [*text.splitlines(), *spare.splitlines()]:
            with suppress(json.JSONDecodeError):
                self._lines.append(json.loads(line))
                whole += line + "\n"
        if whole != text:
            atomic_write(file, whole)
            self._spare.unlink(missing_ok=True)

    def get(self, identity: Mapping[str, Any]) -> Any:
        """What was found last, all that is given being the same; None if nothing was.

        Args:
            identity: as JSON would give it back, so lists and no tuples.
        """
        for line in reversed(self._lines):
            if identity.items() <= line.items():
                return line[self.found]
        return None

    def add(self, identity: Mapping[str, Any], found: Any) -> None:
        """Store what was found.

        Raises:
            OutputError: it could not be written; it is in the cache folder, if there is space.
        """
        line = {**identity, self.found: found}
        self._lines.append(line)
        try:
            _append(self.file, line)
        except OSError as error:
            self._spare.parent.mkdir(parents=True, exist_ok=True)
            _append(self._spare, line)
            raise OutputError(
                f"{self.file} cannot be written ({error.strerror or error}). What was measured "
                f"last is in {self._spare}: free some space, then run the same command again, "
                "which measures only the rest."
            ) from error

    def once(self, identity: Mapping[str, Any], find: Callable[[], Any]) -> Any:
        """What was found before, or else is found now, as JSON has it, and added."""
        if (found := self.get(identity)) is None:
            found = find()
            self.add(identity, found)
        return found


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def fingerprint(run: Path) -> str:
    """A short hash of the weights and the configuration that a run is loaded from."""
    folder, digest = checkpoint_folder(run), hashlib.sha256()
    for name in ("model.safetensors", "config.yaml", "normalizer.json"):
        if (folder / name).exists():  # only policies have a normalizer
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]
