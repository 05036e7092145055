"""Metric logs: log.jsonl."""

from __future__ import annotations

from ebt_policy.training.log import MetricLog


def start(run_dir, resume_step=None):
    return MetricLog(run_dir, tracker="off", config={"seed": 0}, resume_step=resume_step)


def test_log_lines_go_to_the_file(tmp_path):
    log = start(tmp_path)
    log.write(step=3, loss=0.5)
    log.close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 3, "loss": 0.5}\n'


def test_resumed_log_drops_later_and_broken_lines(tmp_path):
    lines = '{"step": 1}\n{"step": 2}\n{"note": 0}\n{"step": 3}\n{"st'
    (tmp_path / "log.jsonl").write_text(lines)
    start(tmp_path, resume_step=2).close()
    expected = '{"step": 1}\n{"step": 2}\n{"note": 0}\n'
    assert (tmp_path / "log.jsonl").read_text() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    start(tmp_path).close()
    assert (tmp_path / "log.jsonl").read_text() == ""
