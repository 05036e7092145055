"""Text and tokens: tokenizers, their cache, corpora, windows and errors."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_language_models import TEXT

from ebt_policy.errors import ConfigError
from ebt_policy.language.data import TextError, TokenWindows, iter_chunks, tokenized
from ebt_policy.language.datasets import load_corpus
from ebt_policy.language.qa_datasets import QUESTIONS
from ebt_policy.language.tokenizer import UNKNOWN, make_tokenizer
from ebt_policy.train import train


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text(min_size=1, max_size=200).filter(lambda s: "\x00" not in s))
@example("one <|end|> two<|end|>")  # A text may contain the special token.
def test_bpe_tokens_decode_to_the_text(sample):
    tokenizer = make_tokenizer("bpe", [TEXT], 300)
    clean = sample.encode("utf-8", "ignore").decode()
    assert tokenizer.decode(tokenizer.encode(clean).ids, skip_special_tokens=False) == clean


def test_character_tokens_decode_to_the_text():
    tokenizer = make_tokenizer("char", iter_chunks(TEXT), 0)
    assert tokenizer.decode(tokenizer.encode(TEXT).ids) == TEXT
    assert tokenizer.decode(tokenizer.encode("Q").ids, skip_special_tokens=False) == UNKNOWN
    assert tokenizer.get_vocab_size() == len(set(TEXT)) + 1


def test_unavailable_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least 257"):
        make_tokenizer("bpe", [TEXT], 256)
    (tmp_path / "tokenizer.json").write_text("{}")
    for kind in (tmp_path / "none.json", tmp_path / "tokenizer.json"):
        with pytest.raises(ConfigError, match="cannot be loaded"):
            make_tokenizer(str(kind), [TEXT], 0)


def test_stored_tokenizer_is_reloaded(tmp_path):
    tokenizer = make_tokenizer("bpe", [TEXT], 300)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    restored = make_tokenizer(str(tmp_path / "tokenizer.json"), [], 0)
    assert restored.encode(TEXT).ids == tokenizer.encode(TEXT).ids


def test_tokens_are_cached(text_file, tmp_path, monkeypatch):
    tokenizer = make_tokenizer("char", [TEXT], 0)
    first = tokenized(TEXT, tokenizer)
    assert isinstance(first, np.memmap) and first.dtype == np.uint16 and len(first) == len(TEXT)
    monkeypatch.setattr("ebt_policy.language.data._tokenize", lambda *_: pytest.fail("made again"))
    np.testing.assert_array_equal(tokenized(TEXT, tokenizer), first)


def test_unwritable_cache_is_refused(text_file, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"EBT_POLICY_CACHE"):
        tokenized(TEXT, make_tokenizer("char", [TEXT], 0))


def test_incomplete_cached_tokens_are_rebuilt(text_file, tmp_path):
    tokenizer = make_tokenizer("char", [TEXT], 0)
    first = np.array(tokenized(TEXT, tokenizer))
    (file,) = (tmp_path / "cache" / "tokens").glob("*.npy")
    for size in (file.stat().st_size // 2, 0):
        file.write_bytes(file.read_bytes()[:size])
        np.testing.assert_array_equal(tokenized(TEXT, tokenizer), first)
    assert len(tokenized("", tokenizer)) == 0


def test_byte_order_mark_is_removed(tmp_path):
    (tmp_path / "a.txt").write_text("words", "utf-8-sig")
    assert load_corpus(None, str(tmp_path / "a.txt")).splits["train"] == "word"


@pytest.mark.parametrize(
    ("splits", "parts"),
    [
        ({"train": ["a" * 10], "test": ["b"]}, {"train": 9, "validation": 1, "test": 1}),
        ({"test": ["b"]}, {"test": 1}),
        ({"other": ["a"]}, "no text in the splits train, validation, test; its splits are other"),
        ({"train": [None]}, "cannot be loaded .* must have a column text"),
    ],
)
def test_hub_data_sets_may_lack_splits(splits, parts, monkeypatch):
    library = type(
        "Library", (), {"load_dataset": lambda *_: {k: {"text": v} for k, v in splits.items()}}
    )
    monkeypatch.setattr("ebt_policy.language.datasets.find_spec", lambda name: True)
    monkeypatch.setattr("ebt_policy.language.datasets.import_module", lambda name: library)
    if isinstance(parts, str):
        with pytest.raises(TextError, match=parts):
            load_corpus("someone/something", None)
    else:
        loaded = load_corpus("someone/something", None).splits
        assert {name: len(text) for name, text in loaded.items()} == parts


def test_token_windows_follow_context_and_stride():
    windows = TokenWindows(np.arange(20, dtype=np.uint16), 4, stride=3)
    assert len(windows) == 6
    rows = windows.gather(torch.tensor([0, 5]))["tokens"]
    assert rows.dtype == torch.int64
    assert rows.tolist() == [[0, 1, 2, 3, 4], [15, 16, 17, 18, 19]]
    assert len(TokenWindows(np.arange(5), 4)) == 1
    with pytest.raises(TextError, match=r"4 tokens, and task\.context=4 needs at least 5"):
        TokenWindows(np.arange(4), 4)


def test_chunks_of_text_concatenate_to_the_text():
    assert "".join(iter_chunks(TEXT * 800)) == TEXT * 800 and len(list(iter_chunks(TEXT * 800))) > 1


def test_corpora_are_loaded_by_name_or_path(text_file, tmp_path, monkeypatch):
    own = load_corpus("own", None)
    assert "descend" in own.splits["train"] + own.splits["validation"]
    from_file = load_corpus(None, str(text_file))
    assert (
        from_file.name == "mine"
        and from_file.splits["train"] + from_file.splits["validation"] == TEXT
    )
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.md").write_text("a")
    (tmp_path / "folder" / "b.txt").write_text("b")
    assert load_corpus(None, str(tmp_path / "folder")).origin == "from 2 files"
    monkeypatch.setenv("EBT_POLICY_DATA", str(tmp_path))
    assert load_corpus(None, None).name == "own"
    (tmp_path / "text").mkdir()
    with zipfile.ZipFile(tmp_path / "text" / "tinyshakespeare.zip", "w") as zipped:
        zipped.writestr("tinyshakespeare/input.txt", TEXT)
    default = load_corpus(None, None)
    assert default.name == "tinyshakespeare" and len(default.splits["train"]) == round(
        0.9 * len(TEXT)
    )


def test_question_answering_corpora_are_for_evaluation_only(tiny_text, tmp_path, monkeypatch):
    monkeypatch.setenv("EBT_POLICY_DATA", str(tmp_path))
    (tmp_path / "reasoning").mkdir()
    squad = [{"context": "Some text.", "qas": [{"question": "Why?", "answers": [{"text": "So."}]}]}]
    contents = {
        "gsm8k": [{"question": "1 + 1?", "answer": "#### 2"}],
        "squad": {"data": [{"paragraphs": squad}]},
        "dyck_languages": {"examples": [{"input": "( [", "target": "] )"}]},
    }
    for name, content in contents.items():
        archive, member, _ = QUESTIONS[name]
        lines = content if name == "gsm8k" else [content]
        with zipfile.ZipFile(tmp_path / "reasoning" / archive, "a") as zipped:
            zipped.writestr(member, "\n".join(map(json.dumps, lines)))
    texts = [load_corpus(name, None).splits["test"] for name in contents]
    assert texts == [
        "Question: 1 + 1?\nAnswer: #### 2",
        "Question: Some text. Why?\nAnswer: So.",
        "Question: ( [\nAnswer: ] )",
    ]
    with zipfile.ZipFile(tmp_path / "reasoning" / "bbh.zip", "a") as zipped:
        zipped.writestr(QUESTIONS["multistep_arithmetic"].member, '{"wrong": []}')
    with pytest.raises(TextError, match="cannot be read"):
        load_corpus("multistep_arithmetic", None)
    with pytest.raises(ConfigError, match=r"task\.corpus=gsm8k has no training split"):
        train(tiny_text("run", "task.path=null", "task.corpus=gsm8k"))


def test_missing_or_broken_text_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("EBT_POLICY_DATA", str(tmp_path))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tinyshakespeare.zip").write_bytes(b"no archive")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\xe4")
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "more").symlink_to(tmp_path / "unmounted")
    for name, path, message in (
        (None, str(tmp_path / "blank.txt"), r"no text in .*blank\.txt: the files are empty"),
        (None, str(tmp_path / "notes"), r"notes/more cannot be read \(No such file"),
        ("wikitext2", None, r"not found at \$EBT_POLICY_DATA/text/wikitext-2-v1.zip"),
        ("tinyshakespeare", None, "cannot be read"),
        (None, str(tmp_path / "none.txt"), "there is no text at"),
        (None, str(tmp_path / "latin.txt"), "is not UTF-8 text"),
        (None, str(tmp_path / "empty"), r"there is no text \(.txt, .md\)"),
    ):
        with pytest.raises(TextError, match=message):
            load_corpus(name, path)
    monkeypatch.setattr("ebt_policy.language.datasets.find_spec", lambda name: None)
    with pytest.raises(TextError, match="pip install datasets"):
        load_corpus("someone/something", None)
