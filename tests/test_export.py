"""Exported policies give the same chunks as the policies."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import camera_policies
import numpy as np
import pytest
import tiny_policies
import torch
from conftest import assert_one_line_error

from ebt_policy import export
from ebt_policy.data.normalizer import Normalizer
from ebt_policy.errors import ConfigError
from ebt_policy.policies import ChunkConstraints, build_policy, mixture, product
from ebt_policy.real_robot import exported_policy
from ebt_policy.real_robot.exported_policy import (
    ExportFormat,
    export_program,
    load_program,
)
from ebt_policy.real_robot.limits import parse_limits
from ebt_policy.real_robot.policy_program import PolicyProgram
from ebt_policy.real_robot.safety import ChunkProjection, Motion

ROOT = Path(__file__).resolve().parent.parent
LIMITS = parse_limits(
    {"position": [0, 512], "velocity": 300, "acceleration": 2000, "max_tracking_error": 200,
     "workspace": {"x": [0, 512]}}, ["x", "y"],
)  # fmt: skip
DT = 0.1
DETERMINISTIC = {
    "flow": ("flow",), "flow matching": ("flow_matching",), "behavior cloning": ("bc",),
    "ddim": ("diffusion ddim",), "s2": ("s2",), "equilibrium": ("equilibrium",),
    "implicit BC": ("ibc",), "ebt_policy": ("ebt_policy",),
}  # fmt: skip
SHORT = {"horizon": 8, "n_action_steps": 4}  # The ticks of a chunk are most of an exported graph.
needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="needs onnxruntime"
)


def several(policy):
    """Return the policy with eight candidates if it has candidates."""
    if hasattr(getattr(policy, "inference", None), "num_candidates"):
        policy.configure_inference(num_candidates=8)
    return policy.requires_grad_(False)


def inputs_with_limits(program, length: int, seed: int = 0):
    """Return inputs with a prefix that moves, and the same constraints for `predict_chunk`."""
    named = dict(zip((p.name for p in program.inputs), program.example(seed), strict=True))
    ticks = torch.arange(program.shape.horizon).view(1, -1, 1)
    prefix = 250 + 5.0 * ticks * torch.tensor([1.0, -1.0])
    committed = prefix[0, : max(length, 1)].double()
    travel = committed[-1] - committed[-2] if length > 1 else torch.zeros(2).double()
    named |= {
        "prefix": prefix, "prefix_length": torch.tensor(length),
        "limits": torch.stack(list(LIMITS.bounds())),
        "motion": torch.stack([committed[-1], travel]), "tick_s": torch.tensor(DT).double(),
    }  # fmt: skip
    motion = Motion(committed[-1].numpy(), travel.numpy())
    first = max(length, program.shape.n_obs_steps - 1)
    constraints = ChunkConstraints(
        prefix=prefix[:, :length] if length else None,
        project=ChunkProjection(LIMITS, LIMITS.bounds(), motion, DT, first),
    )
    return named, constraints


def predict(policy, program, named, constraints):
    """Return the chunk of the policy from the noise of the program."""
    from ebt_policy.energy.sampling import PredrawnNoise

    obs = {"obs": named["state"], **{n: named[n] for n in policy.shape.cameras or {}}}
    return policy.predict_chunk(
        obs, constraints=constraints, generator=PredrawnNoise(named["noise"])
    )


@pytest.mark.parametrize("length", [0, 1, 5])
@pytest.mark.parametrize("kind", DETERMINISTIC)
def test_the_program_predicts_the_chunk_of_the_policy(kind, length):
    policy = several(tiny_policies.build(*DETERMINISTIC[kind]))
    program = PolicyProgram(policy)
    named, constraints = inputs_with_limits(program, length)
    chunk = predict(policy, program, named, constraints)
    with torch.no_grad():
        actions, *energy = program(*named.values())
    torch.testing.assert_close(actions, chunk.actions, atol=5e-2, rtol=0)
    if length:
        assert torch.equal(actions[:, :length], named["prefix"][:, :length])
    if chunk.energy is None:
        assert not energy
    else:
        torch.testing.assert_close(energy[0], chunk.energy, atol=1e-2, rtol=1e-3)
    commands = torch.cat([named["motion"][:1], actions[0, max(length, 1) :]])
    assert (commands[1:] - commands[:-1]).abs().max() <= 300 * DT + 1e-3


def test_a_policy_that_is_conditioned_on_its_prefix_gets_it():
    policy = several(tiny_policies.build("flow", max_prefix_len=4))
    program = PolicyProgram(policy)
    for length in (0, 2, 4):
        named, constraints = inputs_with_limits(program, length)
        chunk = predict(policy, program, named, constraints)
        with torch.no_grad():
            actions, _ = program(*named.values())
        torch.testing.assert_close(actions, chunk.actions, atol=5e-2, rtol=0)


@pytest.mark.parametrize(
    ("compose", "kind"),
    [(product, "flow"), (product, "flow_matching"), (mixture, "flow"), (mixture, "flow_matching")],
)
def test_the_program_of_a_composed_policy(compose, kind):
    """The members have other units, and are conditioned on their prefix."""
    low, high = tiny_policies.LOW, tiny_policies.HIGH
    limits = {
        "obs": torch.tensor([[-50.0] * 20, [600.0] * 20]),
        "action": torch.stack([low + 20, low + 20 + 1.2 * (high - low)]),
    }
    first = tiny_policies.build(kind, max_prefix_len=4, **SHORT)
    config = {**first.config, "shape": asdict(first.shape)}
    second = build_policy(config, Normalizer.fit(limits)).eval()
    policy = several(compose([first, second]))
    if compose is mixture and kind == "flow_matching":
        policy.configure_inference(select="medoid")
    program = PolicyProgram(policy)
    for length in (0, 3):
        named, constraints = inputs_with_limits(program, length)
        chunk = predict(policy, program, named, constraints)
        with torch.no_grad():
            actions = program(*named.values())[0]
        torch.testing.assert_close(actions, chunk.actions, atol=5e-2, rtol=0)


@pytest.mark.parametrize(
    "kind", ["flow", *(pytest.param(k, marks=pytest.mark.slow) for k in ("ddim", "implicit BC"))]
)
def test_the_recorded_graph_is_the_program(kind):
    program = PolicyProgram(several(tiny_policies.build(*DETERMINISTIC[kind], **SHORT)))
    exported = program.export().module()
    for length, seed in ((0, 1), (5, 2)):
        named, _ = inputs_with_limits(program, length, seed)
        with torch.no_grad():
            expected = program(*named.values())
        for a, b in zip(exported(*named.values()), expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("flow", {"straightness_tol": 0.1}, r"add @straightness_tol=null to the checkpoint"),
        ("s2", {"stop_grad_norm": 0.1}, r"add @stop_grad_norm=null"),
        ("flow", {"metropolis_steps": 2}, r"add @metropolis_steps=0"),
        ("diffusion", {"scheduler": "ddpm"}, r"ddpm draws its own noise; add @scheduler=ddim"),
    ],
)
def test_policies_without_a_fixed_program_are_refused(kind, changes, words):
    policy = tiny_policies.build(kind)
    policy.configure_inference(**changes)
    with pytest.raises(ConfigError, match=words):
        PolicyProgram(policy)


@pytest.mark.onnx
@needs_onnx
@pytest.mark.parametrize(
    "kind",
    ["behavior cloning", *(pytest.param(k, marks=pytest.mark.slow)
                           for k in ("flow", "flow matching", "ddim"))],
)  # fmt: skip
def test_onnx_runtime_agrees(kind, tmp_path):
    program = PolicyProgram(several(tiny_policies.build(*DETERMINISTIC[kind], **SHORT)))
    file = tmp_path / "policy.onnx"
    assert export_program(program, file, ExportFormat.ONNX) < 1e-4
    run = load_program(file, threads=1)
    named, _ = inputs_with_limits(program, 5)
    with torch.no_grad():
        expected = program(*named.values())[0]
    difference = (run(*named.values())[0] - expected).abs() / program.action_range
    assert difference.max() < 1e-4
    ports = json.loads((tmp_path / "policy.onnx.json").read_text())["inputs"]
    assert [port["name"] for port in ports] == list(named)
    assert [tuple(port["shape"]) for port in ports] == [tuple(x.shape) for x in named.values()]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy.onnx", "policy.onnx.json"]


@pytest.mark.slow
@pytest.mark.onnx
@needs_onnx
@pytest.mark.vision
def test_a_camera_policy_is_exported(tmp_path):
    program = PolicyProgram(camera_policies.build("flow_matching").requires_grad_(False))
    assert [port.name for port in program.inputs][:2] == ["state", "image"]
    assert export_program(program, tmp_path / "policy.onnx", ExportFormat.ONNX) < 1e-4


@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_a_file_that_differs_from_the_policy_is_not_kept(error, monkeypatch, tmp_path):
    program = PolicyProgram(tiny_policies.build("bc").requires_grad_(False))
    scale = error * program.action_range

    def compile_wrong(exported, package_path):
        Path(package_path).write_text("wrong")

    def run(*inputs):
        return [program(*inputs)[0] + scale * (inputs[3] > 0)]  # wrong with committed actions only

    monkeypatch.setattr(PolicyProgram, "export", lambda self: None)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_wrong)
    monkeypatch.setattr(exported_policy, "load_program", lambda file: run)
    with pytest.raises(ConfigError, match=r"differs from the policy by .* nothing was written"):
        export_program(program, tmp_path / "policy.pt2", ExportFormat.AOTI)
    assert not any(tmp_path.iterdir())


def run_main(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["ebt-export", *arguments])
    try:
        export.main()
    except SystemExit as error:
        return int(error.code or 0), capsys.readouterr().err
    return 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "missing required option checkpoint=RUN"),
        (("checkpoint=x", "format=tflite"), "format must be one of onnx, aoti, got tflite"),
        (("checkpoint=none", "format=aoti"), "none"),
        (("checkpoint=pretrained:push_t", "format=aoti", "output=a.onnx"), "must end in .pt2"),
        (("checkpoint=pretrained:push_t@straightness_tol=0.1", "format=aoti"), "@straightness_tol"),
    ],
)
def test_errors_are_one_line(monkeypatch, capsys, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, error = run_main(monkeypatch, capsys, *arguments)
    assert code == 2 and words in error
    assert_one_line_error(error)
    assert not any(tmp_path.iterdir())


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install onnx onnxscript onnxruntime"):
        ExportFormat.ONNX.check_packages()
    ExportFormat.AOTI.check_packages()


@pytest.mark.slow
def test_the_page_works_from_export_to_cpp(monkeypatch, capsys, tmp_path, tiny_run):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "how_to" / "export.md").read_text()
    for name, block in re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```", page, re.M | re.S):
        (tmp_path / name).write_text(block)
    assert len((tmp_path / "main.cpp").read_text().splitlines()) <= 60
    code, printed = run_main(
        monkeypatch, capsys, f"checkpoint={tiny_run}", "format=aoti", "device=cpu"
    )
    assert code == 0 and "exports/tiny-seed0.pt2" in printed
    (build,) = re.findall(r"^Build and run it:\n\n((?:    .*\n)+)", page, re.M)
    build = build.replace("push_t", "tiny-seed0")  # which is compiled in half the time
    script = f"set -e\n{build}".replace("$(python ", f"$({sys.executable} ")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = re.findall(r"^\s*([\d.]+)\s+([\d.]+)$", done.stdout, re.M)
    assert len(rows) == 15 and np.array(rows, float).max() <= 512
    assert re.search(r"^energy -?\d+\.\d+\nmean latency \d", done.stdout, re.M)


@pytest.mark.slow
@pytest.mark.onnx
@needs_onnx
def test_the_python_example_of_the_page_works(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _ = run_main(monkeypatch, capsys, "checkpoint=pretrained:push_t")
    assert code == 0
    page = (ROOT / "docs" / "how_to" / "export.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    scope: dict = {}
    exec(example, scope)
    assert scope["actions"].shape == (1, 16, 2) and scope["energy"].shape == (1,)
    description = json.loads((tmp_path / "exports" / "push_t.onnx.json").read_text())
    assert [port["name"] for port in description["outputs"]] == ["actions", "energy"]
