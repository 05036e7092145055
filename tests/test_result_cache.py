"""The cache of results: interrupted writes and full disks lose nothing."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from ebt_policy.evaluation import result_cache
from ebt_policy.evaluation.result_cache import ResultCache

FIRST, SECOND = {"key": "one", "seeds": [1, 2]}, {"key": "two", "seeds": [1, 2]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_unwritable_results_go_to_the_cache_folder(tmp_path, cache, monkeypatch):
    file = tmp_path / "played.jsonl"
    ResultCache(file, "episodes").add(FIRST, [1.0])
    append = result_cache._append

    def full(path: Path, line) -> None:
        if path == file:
            with path.open("a") as stream:
                stream.write(json.dumps(line)[:5])  # only the beginning of a line is stored
            raise OSError(errno.ENOSPC, "No space left on device")
        append(path, line)

    with monkeypatch.context() as context:
        context.setattr(result_cache, "_append", full)
        with pytest.raises(OSError, match=r"No space left on device.*free some space, then run"):
            ResultCache(file, "episodes").add(SECOND, [2.0])
    (spare,) = cache.rglob("*.jsonl")
    log = ResultCache(file, "episodes")
    assert log.get(FIRST) == [1.0] and log.get(SECOND) == [2.0]
    assert not spare.exists() and len(file.read_text().splitlines()) == 2
    assert ResultCache(file, "episodes").get(SECOND) == [2.0]
    assert ResultCache(tmp_path / "other.jsonl", "episodes").get(SECOND) is None


def test_incomplete_lines_are_removed(tmp_path):
    file = tmp_path / "played.jsonl"
    ResultCache(file, "episodes").add(FIRST, [1.0])
    with file.open("a") as stream:
        stream.write('{"key": "tw')
    assert ResultCache(file, "episodes").get(FIRST) == [1.0]
    assert len(file.read_text().splitlines()) == 1


def test_results_stored_under_old_option_names_are_found(tmp_path):
    file = tmp_path / "restored.jsonl"
    old, new = {"steps": 2, "candidates": 4}, {"steps": 2, "num_candidates": 4}
    ResultCache(file, "found").add(FIRST | {"inference": old}, [1.0])
    text = file.read_text()
    assert ResultCache(file, "found").get(FIRST | {"inference": new}) == [1.0]
    assert file.read_text() == text  # the file is not rewritten
