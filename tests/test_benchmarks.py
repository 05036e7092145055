"""The commands behind the README's numbers run (tiny), and refuse what they do not know."""

from __future__ import annotations

import json

import pytest

from benchmarks import compare, speed


@pytest.mark.parametrize("module", [speed, compare])
def test_unknown_settings_are_refused(module, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["benchmark", "sise=xs"])
    with pytest.raises(SystemExit, match="unknown settings"):
        module.main()


def test_every_entry_is_of_a_trained_run():
    assert {entry.partition("@")[0] for entry in compare.ENTRIES} == set(compare.RUNS)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_latencies_are_ratios_of_one_run(monkeypatch):
    monkeypatch.setattr(
        speed, "CHUNKS", {k: speed.CHUNKS[k] for k in ("DDPM-100", "energy, 2 steps, best of 16")}
    )
    import torch

    result = speed.inference("xs", 2, torch.device("cpu"))
    for latency in result.values():
        assert latency["DDPM-100"]["ddpm_100_takes"] == 1.0
        assert latency["energy, 2 steps, best of 16"]["p50"] > 0
    json.dumps(result)
