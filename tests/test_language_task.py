"""Training, checkpoints and evaluation of language models, and their commands."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from tiny_language_models import generators

from ebt_policy import eval as evaluating
from ebt_policy import generate
from ebt_policy.language.model import LanguageModel
from ebt_policy.models.base import CheckpointError
from ebt_policy.train import main, train


@pytest.mark.parametrize(
    "overrides",
    [("model=transformer_pp",), ("model=refiner",), ("objective=s1",),
     ("objective=s2", "objective.replay=8", "objective.noise=[0.1,0.01]")],
)  # fmt: skip
def test_training_writes_an_evaluation_and_checkpoints(tiny_text, overrides):
    run = train(tiny_text("run", *overrides))
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert any("held_out_loss" in line for line in log)
    table = (run / "evaluation" / "table.md").read_text()
    assert "perplexity" in table and "mine (validation)" in table
    summary = json.loads((run / "evaluation" / "summary.json").read_text())["entries"][0]
    low, high = summary["perplexity"]["ci95"]
    assert low <= summary["perplexity"]["mean"] == math.exp(summary["loss"]["mean"]) <= high

    model = LanguageModel.from_checkpoint(run)
    restored = LanguageModel.from_checkpoint(run / "checkpoints" / "step_00000012")
    windows = torch.randint(model.vocabulary, (2, 9))
    torch.testing.assert_close(
        model.surprisal(windows, generators()), restored.surprisal(windows, generators())
    )


def test_interrupted_training_resumes_bit_for_bit(tiny_text, tmp_path, monkeypatch):
    from ebt_policy.training.trainer import Trainer

    uninterrupted = train(tiny_text("uninterrupted"))
    step = Trainer.train_step

    def killed(self):
        if self.progress.step == 9:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_text("resumed"))
    resumed = train(tiny_text("resumed", "resume=true"))
    ends = [LanguageModel.from_checkpoint(run).state_dict() for run in (uninterrupted, resumed)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_damaged_checkpoint_is_refused(tiny_text, tmp_path):
    run = train(tiny_text("run", "evaluation.final=false"))
    folder = sorted((run / "checkpoints").glob("step_*"))[-1]
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged"):
        LanguageModel.from_checkpoint(run)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        LanguageModel.from_checkpoint(run)


def test_eval_and_generate_commands_use_a_trained_run(tiny_text, tmp_path, monkeypatch, capsys):
    run = train(tiny_text("run", "evaluation.final=false", "objective.init_std=1.0"))
    output = f"output={tmp_path / 'found'}"
    call = ["eval", f"checkpoint={run}", f"checkpoint={run}@steps=3", "device=cpu", output]
    monkeypatch.setattr(sys, "argv", [*call])
    evaluating.main()
    entries = json.loads((tmp_path / "found" / "summary.json").read_text())["entries"]
    assert [entry["steps"] for entry in entries] == [2, 3]
    thinking = entries[0]["thinking"]
    assert len(thinking["longer"]) == 9
    assert [entry["candidates"] for entry in thinking["wider"]] == [1, 2, 4, 8]
    assert thinking["longer"][2]["mean"] == pytest.approx(thinking["wider"][0]["mean"], rel=1e-5)
    report = (tmp_path / "found" / "report.html").read_text("utf-8")
    for heading in ("Test-time compute", "bits per byte", "window by window", "Training of run"):
        assert heading in report
    monkeypatch.setattr(sys, "argv", [*call[:2], "corpus=own", *call[3:]])
    evaluating.main()
    (entry,) = json.loads((tmp_path / "found" / "summary.json").read_text())["entries"]
    assert entry["corpus"] == "own"
    capsys.readouterr()
    monkeypatch.setattr(
        sys, "argv", ["generate", f"checkpoint={run}", "prompt=the 'quick'\\", "length=5"]
    )
    generate.main()
    generated = capsys.readouterr().out
    assert generated.startswith("the 'quick'\\") and len(generated) == len("the 'quick'\\") + 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task.corpus=nosuch"], "not one of wikitext2, tinyshakespeare"),
        (["task.context=0"], "task.context must be at least 1"),
        (["model=transformer_pp", "objective=s2"], "objective=... is for models that descend"),
        (["model.candidate_layers=9"], "candidate_layers=9 must be between 1 and"),
        (["task.tokenizer=bpe", "task.vocab_size=5"], "at least 257"),
    ],
)
def test_invalid_training_options_are_refused(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    base = ["train", "task=text", "task.corpus=own", "task.tokenizer=char", "device=cpu"]
    monkeypatch.setattr(sys, "argv", [*base, *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and message in capsys.readouterr().err
