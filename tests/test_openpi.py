"""The policy server with the real openpi-client, which has a virtual environment of its own.

``make test-openpi`` creates the environment and runs these tests. Without it they are skipped.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from serving import serving

from ebt_policy.policies import load_policy

ROOT = Path(__file__).resolve().parent.parent
PYTHON = Path(os.environ.get("OPENPI_VENV", ROOT / ".venv-openpi")) / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="run make test-openpi"),
]
CLIENT = """
import sys
import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

policy = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]), api_key="secret")
shape = policy.get_server_metadata()["shape"]
observation = {"observation.state": np.load("state.npy"), "seed": np.int64(3)}
answer = policy.infer(observation)
try:
    policy.infer({"observation.state": np.zeros(20)})
except RuntimeError as error:
    print(error)
broker = ActionChunkBroker(policy, action_horizon=shape["n_action_steps"])
actions = [broker.infer(observation)["actions"] for _ in range(shape["n_action_steps"] + 1)]
np.savez("answer.npz", actions=answer["actions"], energy=answer["energy"], one_by_one=actions)
"""


def call(folder: Path, code: str, *arguments: object) -> str:
    """Run a program with openpi-client, and return what it printed."""
    result = subprocess.run(
        [PYTHON, "-c", code, *map(str, arguments)], cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_the_client_gets_the_chunks_of_the_policy(tmp_path):
    policy = load_policy("pretrained:push_t")
    state = np.random.default_rng(0).uniform(100, 400, (2, 20))
    np.save(tmp_path / "state.npy", state)
    with serving(policy, token="secret") as (address, _):
        printed = call(tmp_path, CLIENT, address.rpartition(":")[2])
    obs = {"obs": torch.tensor(state[None], dtype=torch.float32)}
    chunk = policy.predict_chunk(obs, generator=torch.Generator().manual_seed(3))
    with np.load(tmp_path / "answer.npz") as answer:
        np.testing.assert_allclose(answer["actions"], chunk.actions[0, 1:], atol=1e-2)
        assert answer["energy"] == pytest.approx(float(chunk.energy[0]), abs=1e-3)
        expected = [*answer["actions"][:8], answer["actions"][0]]  # The broker asks again.
        np.testing.assert_allclose(answer["one_by_one"], expected, atol=1e-2)
    assert "observation.state must have the shape (2, 20), got (20,)" in printed


def test_the_example_of_the_how_to_page_works(tmp_path):
    page = (ROOT / "docs" / "how_to" / "serve.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    with serving(load_policy("pretrained:push_t")) as (address, _):
        assert '"127.0.0.1", 8000' in code
        printed = call(tmp_path, code.replace("8000", address.rpartition(":")[2]))
    assert printed == "(15, 2)\n"
