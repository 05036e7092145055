"""Corpora: published ones by name, text files of the user, and the Hugging Face hub's data sets."""

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


HELD_OUT = 0.1  # of a text without splits of its own: its last part


SUFFIXES = (".txt", ".md")


def load_corpus(name: str | None, path: str | Sequence[str] | None) -> Corpus:
    """A corpus by name, or the user's own.

    Args:
        name: ``wikitext2``, ``tinyshakespeare``, ``own`` (the text of this package itself, which
            is always there), one of `QUESTIONS` (to evaluate on), the name of a data set on
            the Hugging Face hub, as NAME or NAME:CONFIGURATION, or None: the first of these that
            there is.
        path: text files, or folders whose ``.txt`` and ``.md`` files are read.

    Raises:
        TextError: there is none, or it cannot be read.
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


# The archive of each, and its members: three splits, or one text that is cut.
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
    except Exception as error:  # JSON of any other shape
        raise TextError(f"{file} cannot be read ({error!r}); fetch it again.") from error
    return Corpus(name, {"test": text}, f"from {file}")


def _unzipped(
    name: str, folder: str, archive: str, members: Sequence[str]
) -> tuple[Path, list[str]]:
    """A published archive below $EBT_POLICY_DATA, and the text of some of its members."""
    file = local_data(folder, archive)
    if file is None:
        raise TextError(
            f"the corpus {name} is looked for at $EBT_POLICY_DATA/{folder}/{archive}, and is not "
            "there; set the variable, or use a text file of your own."
        )
    try:
        with ZipFile(file) as zipped:
            return file, [zipped.read(member).decode() for member in members]
    except Exception as error:  # those of zipfile and its decompressors share no base
        raise TextError(f"{file} cannot be read ({reason(error)}); fetch it again.") from error


def _files(paths: Sequence[str]) -> Corpus:
    files = find_files(paths, SUFFIXES, "text", TextError)
    texts, damaged = [], []
    for file in files:
        try:
            texts.append(file.read_text("utf-8-sig"))  # without the mark that some editors write
        except UnicodeDecodeError as error:
            damaged.append(f"{file} is no text in UTF-8 ({error}); convert or remove it.")
        except OSError as error:
            damaged.append(f"{file} cannot be read ({error.strerror or error}).")
    if damaged:
        raise TextError(listed(damaged))
    text = "\n".join(texts)
    if not text.strip():
        raise TextError(f"there is no text in {', '.join(paths)}: empty files; check task.path.")
    return Corpus(files[0].stem, _cut(text), f"from {len(files)} files")


def _package_text() -> Corpus:
    """The text of this package: its code, comments and configuration."""
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
            f"the corpus {name} is none of {', '.join([*ZIPS, *QUESTIONS, 'own'])}; data sets "
            "of the Hugging Face hub need the package datasets: pip install datasets."
        )
    load_dataset: Any = import_module("datasets").load_dataset  # optional, and slow to import

    repository, _, configuration = name.partition(":")
    try:
        dataset: Any = load_dataset(repository, configuration or None)
        texts = {split: "\n".join(dataset[split]["text"]) for split in dataset}
    except Exception as error:  # the library's own errors share no base
        raise TextError(
            f"the data set {name} cannot be had ({reason(error)}); it must have a column text."
        ) from error
    splits = {split: texts[split] for split in SPLITS if split in texts}
    if not any(splits.values()):
        raise TextError(
            f"the data set {name} has no text in {', '.join(SPLITS)}; it has {', '.join(texts)}."
        )
    if "validation" not in splits and "train" in splits:
        splits |= _cut(splits["train"])
    return Corpus(repository.rpartition("/")[2], splits, f"the hub's {name}")


def _cut(text: str) -> dict[str, str]:
    """The first 90 % to train on, the rest to validate on (as is usual for TinyShakespeare)."""
    end = round(len(text) * (1 - HELD_OUT))
    return {"train": text[:end], "validation": text[end:]}
