"""Policies on the Hugging Face Hub, over the real client and a local server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import assert_one_line_error
from hub_server import hub_server

from ebt_policy import compose
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.entries import checkpoint_domain, parse_checkpoint
from ebt_policy.evaluation.results_folder import results_folder
from ebt_policy.io.hub import HubError, parse_source
from ebt_policy.models.base import CheckpointError
from ebt_policy.policies import load_policy, product
from ebt_policy.policies.hub_upload import without_folders, write_hub_folder
from ebt_policy.push import main

FILES = {
    "README.md", "config.json", "config.yaml", "format_version", "model.safetensors",
    "normalizer.json", "training.svg",
}  # fmt: skip


@pytest.fixture
def hub():
    with hub_server() as server:
        yield server


@pytest.fixture
def command(hub, tmp_path):
    """Return a function that runs a module with a cache of its own, and returns the process."""

    def run(module: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **variables,
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


@pytest.mark.slow
def test_a_pushed_policy_is_evaluated_by_name_online_and_offline(hub, command, tiny_run, tmp_path):
    pushed = command(
        "ebt_policy.push", f"checkpoint={tiny_run}", "repo=me/tiny", "licence=mit", "private=true"
    )
    assert pushed.returncode == 0, pushed.stderr
    assert f"{hub.url}/me/tiny/commit/" in pushed.stdout
    files = hub.repositories["me/tiny"]["main"]
    assert set(files) == FILES and hub.private == {"me/tiny"}
    # Files that a policy does not need are never downloaded.
    unused = {"modeling.py": b"import os", "trainer_state.pt": b"pickle", "old/config.yaml": b""}
    first = hub.commit("me/tiny", unused)
    hub.repositories["me/tiny"]["v1"] = hub.repositories["me/tiny"][first]
    hub.commit("me/tiny", {"model.safetensors": b"a later, broken version"})

    def evaluate(revision, output, **variables):
        return command(
            "ebt_policy.eval", f"checkpoint=hf://me/tiny@{revision}@steps=1", "episodes=1",
            "videos=0", "workers=1", f"output={tmp_path / output}", **variables,
        )  # fmt: skip

    done = evaluate("v1", "first")
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((tmp_path / "first/summary.json").read_text())["entries"]
    assert entry["name"] == "me/tiny@v1 (steps 1)" and entry["steps"] == 1
    downloaded = [path.name for path in (tmp_path / "hf").rglob("*") if path.is_symlink()]
    assert sorted(downloaded) == sorted(FILES - {"README.md", "training.svg", "config.json"})
    count = len(hub.requests)
    offline = evaluate(first, "offline", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    absent = evaluate("v2", "absent", HF_HUB_OFFLINE="1")
    assert absent.returncode == 2 and len(hub.requests) == count
    assert_one_line_error(absent.stderr)
    both = command(
        "ebt_policy.eval", "checkpoint=hf://me/tiny@v1", f"checkpoint=hf://me/tiny@{first}",
        "episodes=1", "videos=0", "workers=1", f"output={tmp_path / 'both'}",
    )  # fmt: skip
    assert both.returncode == 0, both.stderr  # Two revisions have different names.
    unknown = evaluate("v2", "unknown")
    assert unknown.returncode == 2 and "hf://me/tiny@v2 cannot be downloaded (" in unknown.stderr
    assert_one_line_error(unknown.stderr)


@pytest.mark.slow
def test_a_second_upload_replaces_the_first_and_stays_private(hub, command, tiny_run):
    hub.commit("me/tiny", {"notes.txt": b"mine", "training.svg": b"old", "README.md": b"old"})
    arguments = ("checkpoint=pretrained:push_t", "repo=me/tiny", "licence=mit")
    refused = command("ebt_policy.push", *arguments, "private=true")
    assert refused.returncode == 2 and "me/tiny exists and is public" in refused.stderr
    assert hub.repositories["me/tiny"]["main"]["README.md"] == b"old"
    units = "units=px, of a table of 512 px"
    done = command("ebt_policy.push", *arguments, units)
    assert done.returncode == 0, done.stderr
    files = hub.repositories["me/tiny"]["main"]
    assert "training.svg" not in files and files["notes.txt"] == b"mine"
    assert b"Units: px, of a table of 512 px." in files["README.md"]


@pytest.mark.slow
def test_failed_uploads_are_one_line(command, tiny_run):
    arguments = (f"checkpoint={tiny_run}", "repo=me/tiny", "licence=mit")
    done = command("ebt_policy.push", *arguments, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2 and "me/tiny cannot be uploaded (" in done.stderr
    assert_one_line_error(done.stderr)


@pytest.fixture
def evaluated_run(tiny_run, tmp_path):
    """Copy a run and give it an evaluation."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / "evaluation").mkdir(exist_ok=True)
    score = {"mean": 0.5, "ci95": [0.4, 0.6]}
    summary = {"entries": [{"episodes": 20, "score": score, "version": "9.9", "success": None}]}
    (run / "evaluation/summary.json").write_text(json.dumps(summary))
    return run


def test_files_and_card_of_a_repository(evaluated_run, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    policy = write_hub_folder(evaluated_run, folder, "me/tiny", licence="mit", units="px")
    assert {path.name for path in folder.iterdir()} == FILES
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert json.loads((folder / "config.json").read_text()) == config
    assert config["task"]["path"] == "demonstrations"  # without the folders of this machine
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    data = yaml.safe_load(front)
    assert (data["license"], data["pipeline_tag"]) == ("mit", "robotics")
    (result,) = data["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.5 and "0.500 [0.400, 0.600]" in str(result)
    for part in (
        'load_policy("hf://me/tiny")', "| score |", "0.500 [0.400, 0.600]", "(2, 20)", "(16, 2)",
        "Units: px.", "ebt-train task=push_t model=ebt", "train.steps=10", "## Limits",
        "![Training curve](training.svg)", "`obs[18]` + (", "ebt-eval checkpoint=hf://me/tiny",
    ):  # fmt: skip
        assert part in text, part
    assert str(tmp_path.parent) not in text
    again = load_policy(folder)
    obs = {"obs": torch.full((1, 2, 20), 200.0)}
    chunks = [
        p.predict_chunk(obs, generator=torch.Generator().manual_seed(0)).actions
        for p in (policy, again)
    ]
    torch.testing.assert_close(*chunks)


def test_an_older_checkpoint_has_no_results_of_a_later_one(evaluated_run, tmp_path):
    (newest,) = (evaluated_run / "checkpoints").iterdir()
    older = newest.with_name("step_00000001")
    shutil.copytree(newest, older)
    (tmp_path / "folder").mkdir()
    write_hub_folder(older, tmp_path / "folder", "me/push_t", licence="mit")
    text = (tmp_path / "folder/README.md").read_text()
    assert "No evaluation is stored" in text and "training.svg" not in text
    assert "model-index" not in text


def test_composed_policies_and_teachers_reveal_no_folders(tiny_run, tmp_path):
    output = str(tmp_path / "product")
    compose.run(
        {"checkpoint": [tiny_run, tiny_run], "composition": "product", "weights": None,
         "output": output}
    )  # fmt: skip
    (tmp_path / "folder").mkdir()
    write_hub_folder(output, tmp_path / "folder", "me/both", licence="mit")
    files = [(tmp_path / "folder" / name).read_text() for name in FILES & {"README.md",
             "config.yaml", "config.json"}]  # fmt: skip
    assert not any(str(tmp_path.parent.parent) in text for text in files)
    assert "Composed by `ebt-compose` of `ebt` (seed 0), `ebt` (seed 0)." in "".join(files)
    load_policy(tmp_path / "folder")
    config = {"model": {"teacher": "/home/me/runs/a@steps=4"}, "task": {"path": ["/a/b", "c"]}}
    assert without_folders(config) == {
        "model": {"teacher": "a@steps=4"}, "task": {"path": ["b", "c"]},
    }  # fmt: skip


def test_card_of_a_policy_that_lerobot_trained(tiny_run, tmp_path):
    policy = load_policy(tiny_run)
    del policy.config["seed"]  # of ebt-train
    policy.config["trained"] = {"library": "lerobot", "steps": 2000}
    policy.config["task"]["path"] = "/home/me/pusht"
    for name in ("policy", "card", "both", "both_card"):
        (tmp_path / name).mkdir()
    policy.save(tmp_path / "policy")
    write_hub_folder(tmp_path / "policy", tmp_path / "card", "me/lerobot", licence="mit")
    text = (tmp_path / "card" / "README.md").read_text()
    assert "Trained with LeRobot" in text and "2,000 updates" in text and "on pusht." in text
    assert "ebt-train" not in text
    product([policy, load_policy(tmp_path / "policy")]).save(tmp_path / "both")
    write_hub_folder(tmp_path / "both", tmp_path / "both_card", "me/both", licence="mit")
    text = (tmp_path / "both_card" / "README.md").read_text()
    assert "Composed by `ebt-compose` of `ebt`, `ebt`." in text


def test_files_are_written_without_an_upload(call_entry, tmp_path):
    output = tmp_path / "card"
    arguments = ("checkpoint=pretrained:push_t", "repo=me/push_t", "licence=mit")
    assert call_entry(main, *arguments, f"output={output}") == (0, "")
    assert (output / "README.md").is_file()
    code, error = call_entry(main, *arguments, f"output={output}")
    assert code == 2 and "exists; give a new folder" in error
    assert [path.name for path in tmp_path.iterdir()] == ["card"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("repo=me/x", "licence=mit"), "missing required option checkpoint=RUN."),
        (("checkpoint=a", "licence=mit"), "missing required option repo=USER/NAME."),
        (("checkpoint=a", "repo=me/x"), "missing required option licence=mit."),
        (("checkpoint=a", "repo=x", "licence=mit"), "repo must be USER/NAME, got x."),
        (("checkpoint=none", "repo=me/x", "licence=mit"), "there is no checkpoint at none."),
    ],
)
def test_errors_before_an_upload(call_entry, arguments, message):
    code, error = call_entry(main, *arguments)
    assert code == 2 and message in error
    assert_one_line_error(error)


def test_sources_on_the_hub(monkeypatch, tmp_path):
    assert parse_source("hf://me/arm@v1.0") == ("me/arm", "v1.0")
    for text in ("hf://arm", "hf://a/b/c", "me/arm", "hf://me/arm@v1@steps"):
        with pytest.raises(HubError, match="must be hf://USER/NAME"):
            parse_source(text)
    asked = []

    def download(text, repo_type, patterns):
        asked.append((text, repo_type))
        return tmp_path

    monkeypatch.setattr("ebt_policy.models.checkpoint_source.hub.download", download)
    for call in (
        lambda: load_policy("me/arm", revision="v2"),
        lambda: load_policy("hf://me/arm@v3"),
    ):
        with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
            call()
    assert parse_checkpoint("hf://me/arm@v4@steps=1") == (tmp_path, {"steps": 1})
    names = ("hf://me/arm@v2", "hf://me/arm@v3", "hf://me/arm@v4")
    assert asked == [(name, "model") for name in names]
    with pytest.raises(CheckpointError, match="For the Hugging Face Hub, write hf://me/arm"):
        load_policy("me/arm")
    for name in ("pretrained:push_t", "hf://me/arm@v1"):
        with pytest.raises(ConfigError, match=f"but the path is {name}"):
            load_policy(name, revision="v2")


def test_suites_of_policies_on_the_hub_have_a_folder_and_a_domain():
    text = "hf://me/{task}@v1@steps=2,num_candidates=4"
    assert results_folder([text], "mujoco", "").name == "mujoco-me-{task}-v1-steps2-candidates4"
    assert checkpoint_domain(text) is None
