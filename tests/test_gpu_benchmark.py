"""The GPU benchmark at toy size on the CPU, and no host synchronisation in GPU code."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.gpu import fetch, latency, pack
from benchmarks.gpu.card import floor_seconds
from benchmarks.gpu.report import tables
from benchmarks.gpu.results import Case, SectionResults, TimeBudget
from benchmarks.speed import CHUNKS, SHAPE, make
from ebt_policy.energy import descent
from ebt_policy.evaluation.flops import Work
from ebt_policy.policies.chunk_constraints import ChunkConstraints
from ebt_policy.real_robot.safety import ChunkProjection, Motion

SECTIONS = ("card", "latency", "training", "push_t", "text", "images")
CPU = torch.device("cpu")


def case(name: str, log: list[str], seconds: float = 0.0, fails: bool = False) -> Case:
    def measure() -> dict:
        log.append(name)
        if fails:
            raise RuntimeError("CUDA out of memory.\nTried to allocate ...")
        return {"ms": 1.5}

    return Case(name, measure, seconds)


def test_measured_cases_are_stored_at_once_and_skipped_later(tmp_path):
    log: list[str] = []
    stored = tmp_path / "latency.json"

    def check() -> dict:
        assert list(json.loads(stored.read_text())["cases"]) == ["a"]
        return {"ms": 2.5}

    results = SectionResults("latency", tmp_path, "command", toy=False)
    assert results.run([case("a", log), Case("b", check, 0.0)], TimeBudget(1))
    again = SectionResults("latency", tmp_path, "command", toy=False)
    assert again.run([case("a", log), case("b", log), case("c", log)], TimeBudget(1))
    assert log == ["a", "c"]
    assert json.loads(stored.read_text())["cases"]["b"] == {"ms": 2.5}


@pytest.mark.parametrize("changed", ["version", "torch", "card", "toy"])
def test_results_of_another_version_are_measured_again(tmp_path, changed):
    log: list[str] = []
    SectionResults("text", tmp_path, "", toy=False).run([case("a", log)], TimeBudget(1))
    stored = json.loads((tmp_path / "text.json").read_text())
    (tmp_path / "text.json").write_text(json.dumps({**stored, changed: "another"}))
    SectionResults("text", tmp_path, "", toy=False).run([case("a", log)], TimeBudget(1))
    assert log == ["a", "a"]


def test_failed_case_is_reported_and_retried(tmp_path, capsys):
    log: list[str] = []
    results = SectionResults("text", tmp_path, "", toy=False)
    assert not results.run([case("a", log, fails=True), case("b", log)], TimeBudget(1))
    assert "a: failed: CUDA out of memory.\n" in capsys.readouterr().out
    assert "- a: CUDA out of memory." in tables(tmp_path)
    assert SectionResults("text", tmp_path, "", toy=False).run([case("a", log)], TimeBudget(1))
    assert log == ["a", "b", "a"] and "Failed" not in tables(tmp_path)


def test_case_longer_than_the_remaining_time_is_skipped(tmp_path, capsys):
    log: list[str] = []
    results = SectionResults("text", tmp_path, "", toy=False)
    assert not results.run([case("a", log, seconds=90.0), case("b", log, 10.0)], TimeBudget(1))
    assert log == ["b"] and "a: not started, it may take 90 s" in capsys.readouterr().out


def test_roofline_is_the_slower_of_arithmetic_and_memory():
    rates = {
        "matrix product, bf16": {"teraflops": 500.0},
        "copy": {"gigabytes_per_second": 4000.0},
    }
    assert floor_seconds(Work(5e14, 4e12), rates, "bf16") == pytest.approx(1.0)
    assert floor_seconds(Work(5e13, 8e12), rates, "bf16") == pytest.approx(2.0)


def run(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    # Compilation is disabled because it takes minutes and is tested elsewhere.
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1", "PYTHONPATH": root}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_toy_run_measures_every_section_and_prints_tables(tmp_path):
    done = run("benchmarks.gpu", "toy=true", "minutes=60", "output=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    for section in SECTIONS:
        stored = json.loads((folder / f"{section}.json").read_text())
        assert stored["cases"] and stored["failed"] == {}, section
    assert done.stdout.count("| :-- |") == len(SECTIONS)
    assert "| 4xs, batch 1, energy, 2 steps, best of 8, constrained |" in done.stdout
    assert " 1.0x |" in done.stdout  # DDPM-100 relative to itself
    again = run("benchmarks.gpu", "toy=true", "minutes=0", "output=out", cwd=tmp_path)
    assert again.returncode == 0 and "not started" not in again.stdout
    fetched = run("benchmarks.gpu.fetch", "from=out", "output=here", cwd=tmp_path)
    assert fetched.returncode == 0 and not (tmp_path / "here").exists()  # not fetched


def test_invalid_options_are_refused_before_measuring(tmp_path, monkeypatch):
    messages = {
        ("sections=speed", "toy=true"): "unknown section 'speed'; available: all, latency",
        ("minutes=soon",): "minutes must be a number",
    }
    if not torch.cuda.is_available():
        messages[()] = "there is no GPU; toy=true rehearses"
    for arguments, message in messages.items():
        monkeypatch.setattr(sys, "argv", ["gpu", *arguments, f"output={tmp_path / 'out'}"])
        with pytest.raises(SystemExit, match=re.escape(message)):
            import_module("benchmarks.gpu.__main__").main()
    assert not (tmp_path / "out").exists()


def test_fetched_results_are_merged_with_existing_ones():
    header = {"version": "1", "torch": "2", "card": "GPU", "toy": False, "command": ""}
    existing = {**header, "cases": {"a": {"ms": 1}, "b": {"ms": 2}}, "failed": {"c": "why"}}
    new = {**header, "cases": {"b": {"ms": 3}, "c": {"ms": 4}}, "failed": {"d": "why"}}
    joined = fetch.merged(existing, new)
    assert joined["cases"] == {"a": {"ms": 1}, "b": {"ms": 3}, "c": {"ms": 4}}
    assert joined["failed"] == {"d": "why"}
    assert fetch.merged({**existing, "version": "0"}, new) == new


@pytest.mark.vision
def test_installed_packages_are_read_from_a_list(tmp_path):
    pytest.importorskip("timm")
    (tmp_path / "has.txt").write_text("Torch==2.11.0+cu130\nzipp\n\nscikit_learn @ file:///x\n")
    assert pack.installed(tmp_path / "has.txt") == {"torch", "zipp", "scikit-learn"}
    with pytest.raises(SystemExit, match="cannot be read"):
        pack.installed(tmp_path / "missing.txt")
    assert {"torch", "hydra-core", "diffusers", "timm"} <= set(pack.required_packages())
    assert not {"pytest", "mujoco", "ebt-policy"} & set(pack.required_packages())


# Tensors of the meta device stand in for tensors of a GPU. Reading their values raises an error,
# and copies of host tensors to them can be counted.
DEVICE = torch.device("meta")


class HostTransfers(TorchDispatchMode):
    """A dispatch mode that records each copy of a host tensor to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.transfers: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, out)) if isinstance(x, torch.Tensor)]
        if name in ("_to_copy", "copy_") and len({x.device.type for x in tensors}) > 1:
            self.transfers.append(name)
        return out


def host_transfers(job: Callable[[], object]) -> list[str]:
    with HostTransfers() as tensors:
        job()
    return tensors.transfers


def test_host_synchronisations_are_detected():
    x = torch.rand(4, device=DEVICE)
    assert host_transfers(lambda: torch.arange(4).to(DEVICE)) == ["_to_copy"]
    assert host_transfers(lambda: x * 2 + torch.arange(4, device=DEVICE)) == []
    for ask in (lambda: float(x[0]), lambda: bool(x.any()), lambda: x.tolist()):
        with pytest.raises(RuntimeError):
            ask()


@pytest.mark.parametrize(
    ("model", "overrides"),
    [("ebt", []), ("ebt", ["objective=s1"]), ("ebt", ["objective=equilibrium"]),
     ("diffusion", []), ("flow_matching", []), ("bc", [])],
)  # fmt: skip
def test_training_loss_does_not_synchronise_with_the_host(model, overrides, monkeypatch):
    # `check_finite` runs only in eager mode; training on a GPU is compiled.
    monkeypatch.setattr(descent, "check_finite", lambda result: None)
    policy = make(model, "4xs", CPU, *overrides, shape={**SHAPE, "max_prefix_len": 4}).to(DEVICE)
    batch = {
        "obs": torch.rand(8, 2, 20, device=DEVICE), "action": torch.rand(8, 16, 2, device=DEVICE),
    }  # fmt: skip

    def loss() -> None:
        policy(policy.with_noise(policy.normalize(batch)))[0].backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)

    loss()  # the first call copies the schedule of diffusers
    assert host_transfers(loss) == []


# Schedulers of diffusers are left out because they read their time steps on the host.
@pytest.mark.parametrize("predictor", [p for p in latency.PREDICTORS if not p.startswith("DD")])
def test_prediction_does_not_synchronise_with_the_host(predictor, monkeypatch):
    monkeypatch.setattr(descent, "check_finite", lambda result: None)
    model, options = CHUNKS[predictor]
    policy = make(model, "4xs", CPU, shape={**SHAPE, "max_prefix_len": latency.PREFIX})
    policy.eval().requires_grad_(False).configure_inference(**options)
    policy.to(DEVICE)
    obs = {"obs": torch.rand(1, 2, 20, device=DEVICE)}
    motion = Motion.at_rest(np.array([200.0, 300.0]))
    project = ChunkProjection(latency.LIMITS, latency.LIMITS.bounds(DEVICE), motion, 0.1, 4)
    prefix = torch.rand(1, 4, 2, device=DEVICE)
    assert host_transfers(lambda: policy.predict_on_device(obs)) == []
    assert (
        host_transfers(
            lambda: policy.predict_on_device(
                obs, constraints=ChunkConstraints(prefix=prefix, project=project)
            )
        )
        == []
    )


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_prediction_is_compiled_once_for_all_prefixes_and_motions():
    shape = {**SHAPE, "horizon": 8, "n_action_steps": 4, "max_prefix_len": 6}
    policy = make("ebt", "4xs", CPU, shape=shape).eval().requires_grad_(False)
    policy.configure_inference(steps=2, num_candidates=2)
    limits, bounds = latency.LIMITS, latency.LIMITS.bounds()
    obs, start = {"obs": torch.rand(1, 2, 20) * 512}, torch.tensor([[200.0, 300.0]])

    def chunk(length: int) -> torch.Tensor:
        motion = Motion.at_rest(start[0].numpy() + length)
        project = ChunkProjection(limits, bounds, motion, 0.1, length)
        prefix = start.expand(1, length, 2)
        noise = torch.Generator().manual_seed(length)
        return policy.predict_chunk(
            obs, constraints=ChunkConstraints(prefix=prefix, project=project), generator=noise
        ).actions

    lengths = (1, 2, 4, 6)
    eager = [chunk(length) for length in lengths]
    policy.compile_prediction()
    compiled = [chunk(lengths[0])]
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled += [chunk(length) for length in lengths[1:]]
    torch.testing.assert_close(compiled, eager, atol=1e-2, rtol=1e-4)
