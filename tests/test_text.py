"""Language models: text, tokens, training, thinking, writing, storage; and what may go wrong."""

from __future__ import annotations

import json
import math
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import compose_config
from hypothesis import given, settings
from hypothesis import strategies as st
from test_leakage import KINDS, B, V, build, generators, tokens

from ebt_policy import eval as evaluating
from ebt_policy import generate
from ebt_policy.errors import ConfigError
from ebt_policy.language.data import TextError, TokenWindows, iter_chunks, tokenized
from ebt_policy.language.datasets import load_corpus
from ebt_policy.language.model import (
    EnergyLanguageModel,
    LanguageModel,
    negative_entropy,
)
from ebt_policy.language.qa_datasets import QUESTIONS
from ebt_policy.language.tokenizer import UNKNOWN, make_tokenizer
from ebt_policy.models.base import CheckpointError
from ebt_policy.train import main, train

TEXT = "the quick brown fox jumps over the lazy dog. naïve 日本\n" * 60
TINY = (
    "size.width=16", "size.heads=2", "size.layers=2", "task.tokenizer=char", "task.context=8",
    "device=cpu", "train.steps=12", "train.minutes=null", "train.batch_size=4",
    "train.warmup_steps=3", "train.compile=false", "train.checkpoint_every=6", "train.log_every=2",
    "train.eval_every=4", "evaluation.windows=8",
)  # fmt: skip


@pytest.fixture
def text(tmp_path, monkeypatch) -> Path:
    """A file of text, and a cache of our own."""
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "mine.txt"
    file.write_text(TEXT, "utf-8")
    return file


@pytest.fixture
def tiny(text, tmp_path):
    """name, overrides -> configuration of a quick training."""

    def configure(name: str, *overrides: str):
        where = (f"task.path={text}", f"run_dir={tmp_path / name}")
        return compose_config(*TINY, *where, *overrides, "task=text")

    return configure


# -- text and tokens ------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text(min_size=1, max_size=200).filter(lambda s: "\x00" not in s))
def test_bytes_in_pairs_lose_nothing(sample):
    tokenizer = make_tokenizer("bpe", [TEXT], 300)
    clean = sample.encode("utf-8", "ignore").decode()
    assert tokenizer.decode(tokenizer.encode(clean).ids) == clean


def test_characters_lose_nothing_that_was_seen():
    tokenizer = make_tokenizer("char", iter_chunks(TEXT), 0)
    assert tokenizer.decode(tokenizer.encode(TEXT).ids) == TEXT
    assert tokenizer.decode(tokenizer.encode("Q").ids, skip_special_tokens=False) == UNKNOWN
    assert tokenizer.get_vocab_size() == len(set(TEXT)) + 1


def test_a_tokenizer_that_cannot_be_had_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="at least 257"):
        make_tokenizer("bpe", [TEXT], 256)
    (tmp_path / "tokenizer.json").write_text("{}")
    for kind in (tmp_path / "none.json", tmp_path / "tokenizer.json"):
        with pytest.raises(ConfigError, match="cannot be had"):
            make_tokenizer(str(kind), [TEXT], 0)


def test_a_stored_tokenizer_serves_again(tmp_path):
    made = make_tokenizer("bpe", [TEXT], 300)
    made.save(str(tmp_path / "tokenizer.json"))
    again = make_tokenizer(str(tmp_path / "tokenizer.json"), [], 0)
    assert again.encode(TEXT).ids == made.encode(TEXT).ids


def test_tokens_are_made_once_and_kept(text, tmp_path, monkeypatch):
    tokenizer = make_tokenizer("char", [TEXT], 0)
    first = tokenized(TEXT, tokenizer)
    assert isinstance(first, np.memmap) and first.dtype == np.uint16 and len(first) == len(TEXT)
    monkeypatch.setattr("ebt_policy.language.data._tokenize", lambda *_: pytest.fail("made again"))
    np.testing.assert_array_equal(tokenized(TEXT, tokenizer), first)


def test_a_cache_that_cannot_be_written_is_one_clear_error(text, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"EBT_POLICY_CACHE"):
        tokenized(TEXT, make_tokenizer("char", [TEXT], 0))


def test_tokens_that_a_crash_left_incomplete_are_made_again(text, tmp_path):
    tokenizer = make_tokenizer("char", [TEXT], 0)
    first = np.array(tokenized(TEXT, tokenizer))
    (file,) = (tmp_path / "cache" / "tokens").glob("*.npy")
    for size in (file.stat().st_size // 2, 0):
        file.write_bytes(file.read_bytes()[:size])
        np.testing.assert_array_equal(tokenized(TEXT, tokenizer), first)
    assert len(tokenized("", tokenizer)) == 0


def test_the_mark_of_some_editors_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_text("words", "utf-8-sig")
    assert load_corpus(None, str(tmp_path / "a.txt")).splits["train"] == "word"


@pytest.mark.parametrize(
    ("splits", "parts"),
    [
        ({"train": ["a" * 10], "test": ["b"]}, {"train": 9, "validation": 1, "test": 1}),
        ({"test": ["b"]}, {"test": 1}),
        ({"other": ["a"]}, "has no text in train, validation, test; it has other"),
        ({"train": [None]}, "cannot be had .* must have a column text"),
    ],
)
def test_data_sets_of_the_hub_may_lack_parts(splits, parts, monkeypatch):
    library = type(
        "Library", (), {"load_dataset": lambda *_: {k: {"text": v} for k, v in splits.items()}}
    )
    monkeypatch.setattr("ebt_policy.language.datasets.find_spec", lambda name: True)
    monkeypatch.setattr("ebt_policy.language.datasets.import_module", lambda name: library)
    if isinstance(parts, str):
        with pytest.raises(TextError, match=parts):
            load_corpus("someone/something", None)
    else:
        found = load_corpus("someone/something", None).splits
        assert {name: len(text) for name, text in found.items()} == parts


def test_windows_are_what_follows_each_place():
    windows = TokenWindows(np.arange(20, dtype=np.uint16), 4, stride=3)
    assert len(windows) == 6
    rows = windows.gather(torch.tensor([0, 5]))["tokens"]
    assert rows.dtype == torch.int64
    assert rows.tolist() == [[0, 1, 2, 3, 4], [15, 16, 17, 18, 19]]
    assert len(TokenWindows(np.arange(5), 4)) == 1
    with pytest.raises(TextError, match=r"4 tokens has no window of task\.context=4"):
        TokenWindows(np.arange(4), 4)


def test_pieces_are_the_text():
    assert "".join(iter_chunks(TEXT * 800)) == TEXT * 800 and len(list(iter_chunks(TEXT * 800))) > 1


def test_corpora(text, tmp_path, monkeypatch):
    own = load_corpus("own", None)
    assert "descend" in own.splits["train"] + own.splits["validation"]
    mine = load_corpus(None, str(text))
    assert mine.name == "mine" and mine.splits["train"] + mine.splits["validation"] == TEXT
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.md").write_text("a")
    (tmp_path / "folder" / "b.txt").write_text("b")
    assert load_corpus(None, str(tmp_path / "folder")).origin == "from 2 files"
    monkeypatch.setenv("EBT_POLICY_DATA", str(tmp_path))
    assert load_corpus(None, None).name == "own"
    (tmp_path / "text").mkdir()
    with zipfile.ZipFile(tmp_path / "text" / "tinyshakespeare.zip", "w") as zipped:
        zipped.writestr("tinyshakespeare/input.txt", TEXT)
    found = load_corpus(None, None)
    assert found.name == "tinyshakespeare" and len(found.splits["train"]) == round(0.9 * len(TEXT))


def test_questions_and_answers_are_text_to_evaluate_on(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("EBT_POLICY_DATA", str(tmp_path))
    (tmp_path / "reasoning").mkdir()
    squad = [{"context": "Some text.", "qas": [{"question": "Why?", "answers": [{"text": "So."}]}]}]
    written = {
        "gsm8k": [{"question": "1 + 1?", "answer": "#### 2"}],
        "squad": {"data": [{"paragraphs": squad}]},
        "dyck_languages": {"examples": [{"input": "( [", "target": "] )"}]},
    }
    for name, content in written.items():
        archive, member, _ = QUESTIONS[name]
        lines = content if name == "gsm8k" else [content]
        with zipfile.ZipFile(tmp_path / "reasoning" / archive, "a") as zipped:
            zipped.writestr(member, "\n".join(map(json.dumps, lines)))
    texts = [load_corpus(name, None).splits["test"] for name in written]
    assert texts == [
        "Question: 1 + 1?\nAnswer: #### 2",
        "Question: Some text. Why?\nAnswer: So.",
        "Question: ( [\nAnswer: ] )",
    ]
    with zipfile.ZipFile(tmp_path / "reasoning" / "bbh.zip", "a") as zipped:
        zipped.writestr(QUESTIONS["multistep_arithmetic"].member, '{"wrong": []}')
    with pytest.raises(TextError, match="cannot be read"):
        load_corpus("multistep_arithmetic", None)
    with pytest.raises(ConfigError, match="is for evaluation"):
        train(tiny("run", "task.path=null", "task.corpus=gsm8k"))


def test_text_that_is_not_there_or_broken_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("EBT_POLICY_DATA", str(tmp_path))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tinyshakespeare.zip").write_bytes(b"no archive")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\xe4")
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "more").symlink_to(tmp_path / "unmounted")
    for name, path, message in (
        (None, str(tmp_path / "blank.txt"), r"there is no text in .*blank\.txt: empty files"),
        (None, str(tmp_path / "notes"), r"notes/more cannot be read \(No such file"),
        ("wikitext2", None, r"looked for at \$EBT_POLICY_DATA/text/wikitext-2-v1.zip"),
        ("tinyshakespeare", None, "cannot be read"),
        (None, str(tmp_path / "none.txt"), "there is no text at"),
        (None, str(tmp_path / "latin.txt"), "no text in UTF-8"),
        (None, str(tmp_path / "empty"), r"there is no text \(.txt, .md\)"),
    ):
        with pytest.raises(TextError, match=message):
            load_corpus(name, path)
    monkeypatch.setattr("ebt_policy.language.datasets.find_spec", lambda name: None)
    with pytest.raises(TextError, match="pip install datasets"):
        load_corpus("someone/something", None)


# -- models ---------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def test_loss_is_finite_and_reaches_every_parameter(kind):
    model = build(kind).float()
    loss, _ = model.loss({"tokens": torch.randint(V, (3, 8))})
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("many", [1, 3])
def test_surprisal_is_that_of_a_distribution(kind, many):
    model = build(kind)
    if isinstance(model, EnergyLanguageModel) and model.has_energy and model.has_random_init:
        model.configure_inference(num_candidates=many)
    logits = model.predict(model.observe(tokens()), generators())
    assert logits.shape == (B, 7, V) and not logits.requires_grad
    found = model.surprisal(tokens(), generators())
    want = -model.predict(model.observe(tokens()[:, :-1]), generators()).log_softmax(-1)
    torch.testing.assert_close(found, want.gather(2, tokens()[:, 1:, None])[..., 0])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_with_a_cache_it_writes_what_it_writes_without(kind, temperature):
    """Token by token, past the end of the context."""
    model = build(kind)
    how = {"temperature": temperature, "top_k": 5}
    if isinstance(model, EnergyLanguageModel):
        model.objective.init_std = 0.0  # with a random start, noise would be drawn for other places
        if kind == "ebt s2":
            model.objective.noise = None
    written = [
        "".join(model.generate("abc", 12, **how, cached=cached, generator=g))
        for cached, g in zip((True, False), generators(), strict=True)
        if g.manual_seed(3)
    ]
    assert len(written[0]) == 12 and written[0] == written[1]


def test_writing_starts_from_something(kind):
    with pytest.raises(ConfigError, match="must not be empty"):
        next(build(kind).generate("", 3))


def test_characters_of_several_bytes_are_written_whole():
    tokenizer = make_tokenizer("bpe", ["plain"], 257)
    model = build("transformer_pp")
    model.tokenizer = tokenizer
    ids = iter(tokenizer.encode("日本é!").ids)
    model.predict = lambda observed, generator=None: torch.nn.functional.one_hot(  # type: ignore
        torch.tensor([[next(ids)]]), 257
    ).float()
    model.embedding = torch.nn.Embedding(257, 16, dtype=torch.float64)
    assert list(model.generate("a", 9, temperature=0.0)) == ["日", "本", "é", "!"]


def free_energy(model, observed, logits):
    return model.energy(observed)(model.embed(logits), None) + negative_entropy(logits)


def test_the_lowest_of_several_guesses_is_taken():
    one, many = build("ebt"), build("ebt", num_candidates=4)
    assert isinstance(one, EnergyLanguageModel) and isinstance(many, EnergyLanguageModel)
    observed = many.observe(tokens())
    found = many.descend(observed, generators())
    alone = one.descend(one.observe(tokens()), generators())
    assert found.candidate.shape == alone.candidate.shape == (B, 7, V)
    again = free_energy(many, observed, found.candidate)
    torch.testing.assert_close(again, found.energies[-1])
    every = build("ebt")
    every.configure_inference(num_candidates=4)
    torch.testing.assert_close(every.predict(observed, generators()), found.candidate)


def test_rejecting_increases_never_ends_higher():
    plain, careful = build("ebt", steps=6), build("ebt", steps=6, reject_energy_increase=True)
    assert isinstance(plain, EnergyLanguageModel) and isinstance(careful, EnergyLanguageModel)
    with torch.no_grad():
        for model in (plain, careful):  # steps so long that some go up
            model.objective.step_size.fill_(20.0)  # type: ignore[union-attr]
        up = plain.descend(plain.observe(tokens()), generators()).energies.diff(dim=0) > 1e-9
        down = careful.descend(careful.observe(tokens()), generators())
    assert up.any() and (down.energies.diff(dim=0) <= 1e-9).all()
    energy = free_energy(careful, careful.observe(tokens()), down.candidate)
    torch.testing.assert_close(energy, down.energies[-1])
    assert (down.steps_used <= 6).all() and (down.steps_used < 6).any()


def test_a_refiner_has_nothing_to_choose_by():
    with pytest.raises(ConfigError, match="no energy to select"):
        build("refiner", num_candidates=2)
    with pytest.raises(ConfigError, match="no energy to select"):
        build("refiner").configure_inference(reject_energy_increase=True)


# -- training, evaluation, storage ----------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [("model=transformer_pp",), ("model=refiner",), ("objective=s1",),
     ("objective=s2", "objective.replay=8", "objective.noise=[0.1,0.01]")],
)  # fmt: skip
def test_train_evaluate_and_load(tiny, overrides):
    straight = train(tiny("straight", *overrides))
    log = [json.loads(line) for line in (straight / "log.jsonl").read_text().splitlines()]
    assert any("held_out_loss" in line for line in log)
    table = (straight / "evaluation" / "table.md").read_text()
    assert "perplexity" in table and "mine (validation)" in table
    summary = json.loads((straight / "evaluation" / "summary.json").read_text())["entries"][0]
    low, high = summary["perplexity"]["ci95"]
    assert low <= summary["perplexity"]["mean"] == math.exp(summary["loss"]["mean"]) <= high

    model = LanguageModel.from_checkpoint(straight)
    again = LanguageModel.from_checkpoint(straight / "checkpoints" / "step_00000012")
    some = torch.randint(model.vocabulary, (2, 9))
    torch.testing.assert_close(
        model.surprisal(some, generators()), again.surprisal(some, generators())
    )


def test_a_killed_training_goes_on_bit_for_bit(tiny, tmp_path, monkeypatch):
    from ebt_policy.training.trainer import Trainer

    straight = train(tiny("straight"))
    step = Trainer.train_step

    def killed(self):
        if self.progress.step == 9:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny("broken"))
    broken = train(tiny("broken", "resume=true"))
    ends = [LanguageModel.from_checkpoint(run).state_dict() for run in (straight, broken)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_damaged_checkpoint_is_one_clear_error(tiny, tmp_path):
    run = train(tiny("run", "evaluation.final=false"))
    folder = sorted((run / "checkpoints").glob("step_*"))[-1]
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged"):
        LanguageModel.from_checkpoint(run)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        LanguageModel.from_checkpoint(run)


def test_the_entries(tiny, tmp_path, monkeypatch, capsys):
    run = train(tiny("run", "evaluation.final=false", "objective.init_std=1.0"))
    where = f"output={tmp_path / 'found'}"
    call = ["eval", f"checkpoint={run}", f"checkpoint={run}@steps=3", "device=cpu", where]
    monkeypatch.setattr(sys, "argv", [*call])
    evaluating.main()
    entries = json.loads((tmp_path / "found" / "summary.json").read_text())["entries"]
    assert [entry["steps"] for entry in entries] == [2, 3]
    thought = entries[0]["thinking"]
    assert len(thought["longer"]) == 9
    assert [entry["candidates"] for entry in thought["wider"]] == [1, 2, 4, 8]
    assert thought["longer"][2]["mean"] == pytest.approx(thought["wider"][0]["mean"], rel=1e-5)
    report = (tmp_path / "found" / "report.html").read_text("utf-8")
    for shown in ("Thinking", "bits a byte", "window by window", "Training of run"):
        assert shown in report
    monkeypatch.setattr(sys, "argv", [*call[:2], "corpus=own", *call[3:]])
    evaluating.main()
    (entry,) = json.loads((tmp_path / "found" / "summary.json").read_text())["entries"]
    assert entry["corpus"] == "own"
    capsys.readouterr()
    monkeypatch.setattr(
        sys, "argv", ["generate", f"checkpoint={run}", "prompt=the 'quick'\\", "length=5"]
    )
    generate.main()
    written = capsys.readouterr().out
    assert written.startswith("the 'quick'\\") and len(written) == len("the 'quick'\\") + 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task.corpus=nosuch"], "none of wikitext2, tinyshakespeare"),
        (["task.context=0"], "task.context must be at least 1"),
        (["model=transformer_pp", "objective=s2"], "objective=... is for models that descend"),
        (["model.candidate_layers=9"], "candidate_layers=9 must be between 1 and"),
        (["task.tokenizer=bpe", "task.vocab_size=5"], "at least 257"),
    ],
)
def test_what_cannot_be_is_one_clear_error(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    base = ["train", "task=text", "task.corpus=own", "task.tokenizer=char", "device=cpu"]
    monkeypatch.setattr(sys, "argv", [*base, *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and message in capsys.readouterr().err
