"""Corpora: published ones by name, the user's text files, and data sets of the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import ebt_policy
from ebt_policy.io.local_data import local_data
from ebt_policy.io.paths import find_files, listed, reason
from ebt_policy.language.data import Corpus, TextError
from ebt_policy.language.qa_datasets import QUESTIONS

SPLITS: tuple[str, ...] = ("train", "validation", "test")


HELD_OUT = 0.1  # Fraction at the end of a text that is held out if the text has no splits.


SUFFIXES = (".txt", ".md")


def load_corpus(name: str | None, path: str | Sequence[str] | None) -> Corpus:
    """Load a corpus by name, or the user's own text.

    Args:
        name: ``wikitext2``, ``tinyshakespeare``, ``own`` (the text of this package, which is always
            available), one of `QUESTIONS` (only for evaluation), or a data set of the Hugging Face
            hub, as NAME or NAME:CONFIGURATION. None selects the first of the first three that is
            available.
        path: text files, or folders whose ``.txt`` and ``.md`` files are read; overrides ``name``.

    Raises:
        TextError: there is no such text, or it cannot be read.
    """
    if path is not None:
        return _files([path] if isinstance(path, str) else list(path))
    if name is None:
        name = next((corpus for corpus in ZIPS if local_data("text", ZIPS[corpus][0])), "own")
    if name in ZIPS:
        return _published(name)
    if name in QUESTIONS:
        return _questions(name)
    return _package_text() if name == "own" else _hub(name)


# Archive and members of each corpus. The members are three splits, or one text to split.
ZIPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "wikitext2": (
        "wikitext-2-v1.zip",
        tuple(f"wikitext-2/wiki.{split}.tokens" for split in ("train", "valid", "test")),
    ),
    "tinyshakespeare": ("tinyshakespeare.zip", ("tinyshakespeare/input.txt",)),
}


def _published(name: str) -> Corpus:
    archive, members = ZIPS[name]
    file, texts = _unzipped(name, "text", archive, members)
    splits: dict[str, str] = _cut(texts[0])
    if len(texts) > 1:
        splits = dict(zip(SPLITS, texts, strict=True))
    return Corpus(name, splits, f"from {file}")


def _questions(name: str) -> Corpus:
    questions = QUESTIONS[name]
    file, (raw,) = _unzipped(name, "reasoning", questions.archive, (questions.member,))
    try:
        text = questions.text(raw)
    except Exception as error:  # The JSON can have any other structure.
        raise TextError(f"{file} cannot be read ({error!r}); download it again.") from error
    return Corpus(name, {"test": text}, f"from {file}")


def _unzipped(
    name: str, folder: str, archive: str, members: Sequence[str]
) -> tuple[Path, list[str]]:
    """Return the path of an archive in $EBT_POLICY_DATA, and the text of the given members."""
    file = local_data(folder, archive)
    if file is None:
        raise TextError(
            f"the corpus {name} was not found at $EBT_POLICY_DATA/{folder}/{archive}; set "
            "EBT_POLICY_DATA, or use a text file of your own."
        )
    try:
        with ZipFile(file) as zipped:
            return file, [zipped.read(member).decode() for member in members]
    except Exception as error:  # Errors of zipfile and its decompressors have no common base.
        raise TextError(f"{file} cannot be read ({reason(error)}); download it again.") from error


def _files(paths: Sequence[str]) -> Corpus:
    files = find_files(paths, SUFFIXES, "text", TextError)
    texts, damaged = [], []
    for file in files:
        try:
            texts.append(file.read_text("utf-8-sig"))  # This codec skips a byte-order mark.
        except UnicodeDecodeError as error:
            damaged.append(f"{file} is not UTF-8 text ({error}); convert or remove it.")
        except OSError as error:
            damaged.append(f"{file} cannot be read ({error.strerror or error}).")
    if damaged:
        raise TextError(listed(damaged))
    text = "\n".join(texts)
    if not text.strip():
        raise TextError(f"there is no text in {', '.join(paths)}: the files are empty.")
    return Corpus(files[0].stem, _cut(text), f"from {len(files)} files")


def _package_text() -> Corpus:
    """Return the text of this package: its code, comments and configuration."""
    files = [
        Path(folder, name)
        for folder, _, names in os.walk(Path(ebt_policy.__file__).parent, followlinks=True)
        for name in names
        if name.endswith((".py", ".yaml"))
    ]
    texts = [file.read_text("utf-8") for file in sorted(files)]
    return Corpus("own", _cut("\n".join(texts)), "the text of this package")


def _hub(name: str) -> Corpus:
    if find_spec("datasets") is None:
        raise TextError(
            f"the corpus {name} is not one of {', '.join([*ZIPS, *QUESTIONS, 'own'])}; data sets "
            "of the Hugging Face hub need the package datasets: pip install datasets."
        )
    # The package is optional, and slow to import.
    load_dataset: Any = import_module("datasets").load_dataset
    repository, _, configuration = name.partition(":")
    try:
        dataset: Any = load_dataset(repository, configuration or None)
        texts = {split: "\n".join(dataset[split]["text"]) for split in dataset}
    except Exception as error:  # The library's errors have no common base class.
        raise TextError(
            f"the data set {name} cannot be loaded ({reason(error)}); it must have a column text."
        ) from error
    splits = {split: texts[split] for split in SPLITS if split in texts}
    if not any(splits.values()):
        raise TextError(
            f"the data set {name} has no text in the splits {', '.join(SPLITS)}; its splits are "
            f"{', '.join(texts)}."
        )
    if "validation" not in splits and "train" in splits:
        splits |= _cut(splits["train"])
    return Corpus(repository.rpartition("/")[2], splits, f"the hub's {name}")


def _cut(text: str) -> dict[str, str]:
    """Return the first 90 % for training and the rest for validation, as for TinyShakespeare."""
    end = round(len(text) * (1 - HELD_OUT))
    return {"train": text[:end], "validation": text[end:]}
