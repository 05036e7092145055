"""The policy server: its requests, its answers, its limits, and what it does with bad input."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
import requests
import torch
from conftest import assert_one_line_error
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import serving
from tiny_policies import build, observe
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from ebt_policy import serve
from ebt_policy.errors import ConfigError
from ebt_policy.io.messages import MessageError, pack, unpack
from ebt_policy.policies import ChunkConstraints, PolicyShape
from ebt_policy.serving.batching import BatchedPredictor
from ebt_policy.serving.protocol import example_requests, message_limit, read_request

STATE = "observation.state"


@pytest.fixture(scope="module")
def policy():
    return build("flow")


@pytest.fixture(scope="module")
def server(policy):
    with serving(policy) as (address, server):
        yield address, server


def ask(connection, message) -> dict | str:
    connection.send(message if isinstance(message, bytes | str) else pack(message))
    answer = connection.recv(20)
    return answer if isinstance(answer, str) else unpack(answer)


def open_connection(address: str, **options):
    with ExitStack() as stack:
        connection = stack.enter_context(connect(address, compression=None, proxy=None, **options))
        metadata = unpack(connection.recv(10))
        stack.pop_all()
        return connection, metadata


# -- requests ---------------------------------------------------------------------------------


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner,
                                                                max_size=3),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([STATE, "prefix", "warm_start", "seed", "deadline_s", "prompt"]), values
    )
)
def test_requests_with_arbitrary_values_raise_no_other_error(message):
    with pytest.raises(MessageError):  # The state is never an array here.
        read_request(unpack(pack(message)), SHAPE)


SHAPE = PolicyShape(20, 2, 16, 2, 8)
GOOD = {STATE: np.full((2, 20), 200.0)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({STATE: None}, r"observation.state must be an array \(2, 20\), got NoneType"),
        ({STATE: np.zeros(20)}, r"must have the shape \(2, 20\), got \(20,\)"),
        ({STATE: np.full((2, 20), np.nan)}, "observation.state contains NaN"),
        ({STATE: np.full((2, 20), 1e300)}, "observation.state contains NaN or infinity"),
        ({"prompt": "push"}, "unknown key prompt; this policy reads observation.state and"),
        ({"prefix": np.zeros((3, 3))}, r"prefix must have the shape \(P, 2\)"),
        ({"prefix": np.zeros((17, 2))}, "prefix must have 1 to 16 actions, got 17"),
        ({"prefix": np.zeros((0, 2))}, "prefix must have 1 to 16 actions, got 0"),
        ({"warm_start": np.zeros((15, 2))}, r"warm_start must have the shape \(16, 2\)"),
        ({"seed": -1}, "seed must be an integer"),
        ({"seed": True}, "seed must be an integer"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"deadline_s": 0}, "deadline_s must be a positive number"),
        ({"deadline_s": float("nan")}, "deadline_s must be a positive number"),
        ({"deadline_s": "soon"}, "deadline_s must be a positive number"),
    ],
)
def test_a_bad_request_is_answered_and_the_connection_stays_open(server, change, words):
    address, _ = server
    connection, _ = open_connection(address)
    with connection:
        answer = ask(connection, {**GOOD, **change})
        assert isinstance(answer, str)
        with pytest.raises(MessageError, match=words):
            read_request(unpack(pack({**GOOD, **change})), SHAPE)
        assert ask(connection, GOOD)["actions"].shape == (15, 2)


def test_images_are_checked():
    shape = PolicyShape(20, 2, 16, 2, 8, cameras={"top": [4, 6]})
    key = "observation.images.top"
    image = np.zeros((2, 4, 6, 3), np.uint8)
    assert read_request({**GOOD, key: image}, shape).obs["top"].shape == image.shape
    for wrong, words in (
        (image.astype(np.float32), "must be uint8"), (image[0], "must have the shape"),
    ):  # fmt: skip
        with pytest.raises(MessageError, match=words):
            read_request({**GOOD, key: wrong}, shape)
    with pytest.raises(MessageError, match=r"the message has no observation.images.top"):
        read_request(GOOD, shape)
    assert message_limit(shape) > len(pack({**GOOD, key: image}))


# -- answers ----------------------------------------------------------------------------------


def test_the_answer_is_the_prediction_of_the_policy(policy, server):
    address, _ = server
    obs = observe(1)
    prefix, plan = torch.rand(1, 3, 2) * 100 + 200, torch.rand(1, 16, 2) * 100 + 200
    expected = policy.predict_chunk(
        obs, constraints=ChunkConstraints(prefix=prefix, warm_start=plan),
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    connection, metadata = open_connection(address)
    with connection:
        message = {STATE: obs["obs"][0].numpy(), "prefix": prefix[0].numpy(),
                   "warm_start": plan[0].numpy(), "seed": 5}  # fmt: skip
        answer = ask(connection, message)
        again = ask(connection, message)
    assert metadata["shape"]["horizon"] == 16 and metadata["observation"] == [STATE]
    np.testing.assert_allclose(answer["actions"], expected.actions[0, 1:].numpy(), atol=1e-3)
    assert answer["energy"] == pytest.approx(float(expected.energy[0]), abs=1e-3)
    assert answer["steps"] == int(expected.steps_used[0])
    assert answer["server_timing"].keys() == {"infer_ms", "wait_ms"}
    assert again["server_timing"]["prev_total_ms"] > 0


@pytest.mark.parametrize("kind", ["flow", "diffusion", "bc"])
def test_clients_of_one_batch_get_their_own_answers(kind):
    policy = build(kind)
    sizes, predict = [], policy.predict_chunk

    def slow(obs, **arguments):
        sizes.append(len(obs["obs"]))
        time.sleep(0.2)
        return predict(obs, **arguments)

    policy.predict_chunk = slow
    obs = observe(6)["obs"]
    expected = [
        predict({"obs": obs[i : i + 1]}, generator=torch.Generator().manual_seed(i)).actions[0, 1:]
        for i in range(6)
    ]
    with serving(policy, max_batch=4) as (address, _), ThreadPoolExecutor(6) as threads:
        connections = [open_connection(address)[0] for _ in range(6)]
        messages = [{STATE: obs[i].numpy(), "seed": i} for i in range(6)]
        answers = list(threads.map(ask, connections, messages))
        for connection in connections:
            connection.close()
    assert max(sizes) > 1 and max(sizes) <= 4 and sum(sizes) == 6
    for answer, actions in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer["actions"], actions.numpy(), atol=2e-3)


def test_requests_that_differ_in_kind_are_not_mixed(policy, server):
    address, _ = server
    kinds = [{}, {"prefix": np.full((2, 2), 200.0)}, {"prefix": np.full((4, 2), 200.0)},
             {"warm_start": np.full((16, 2), 200.0)}, {"deadline_s": 5.0}]  # fmt: skip
    with ThreadPoolExecutor(10) as threads:
        connections = [open_connection(address)[0] for _ in range(10)]
        answers = list(threads.map(ask, connections, [GOOD | {"seed": 0} | k for k in kinds * 2]))
        for connection in connections:
            connection.close()
    for first, second in zip(answers[:5], answers[5:], strict=True):
        np.testing.assert_allclose(first["actions"], second["actions"], atol=1e-3)


def test_a_failing_policy_is_reported_and_the_server_continues(policy):
    calls = []

    def fail_once(obs, **arguments):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return predict(obs, **arguments)

    failing = build("bc")
    predict, failing.predict_chunk = failing.predict_chunk, fail_once
    with serving(failing) as (address, server):
        connection, _ = open_connection(address)
        with connection:
            assert ask(connection, GOOD) == "the policy failed (RuntimeError: out of memory)"
            assert ask(connection, GOOD)["actions"].shape == (15, 2)
        deadline = time.monotonic() + 5
        while server.num_requests < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (server.num_requests, server.num_errors) == (2, 1)


@pytest.mark.parametrize("pad", [False, True])
def test_a_compiled_policy_gets_batches_of_two_sizes(pad):
    policy, calls = build("flow"), []
    predict = policy.predict_chunk

    def record(obs, *, constraints, generator):
        kind = (constraints.prefix is not None, constraints.warm_start is not None)
        calls.append((len(obs["obs"]), kind))
        return predict(obs, constraints=constraints, generator=generator)

    policy.predict_chunk = record
    predictor = BatchedPredictor(policy, 4, pad=pad)
    predictor.warm_up(example_requests(policy, all_kinds=pad))
    kinds = [(a, b) for a in (False, True) for b in (False, True)] if pad else [(False, False)]
    assert set(calls) == {(size, kind) for kind in kinds for size in ((1, 4) if pad else (1,))}
    requests = example_requests(policy, all_kinds=False)
    chunk = predictor._predict([*requests, *requests])
    assert calls[-1][0] == (4 if pad else 2) and len(chunk.actions) == calls[-1][0]
    predictor.close()


# -- limits -----------------------------------------------------------------------------------


def test_bad_frames_do_not_harm_other_clients(policy, server):
    address, _ = server
    generator = np.random.default_rng(0)
    good, _ = open_connection(address)
    with good:
        for _ in range(100):
            bad, _ = open_connection(address)
            with bad:
                answer = ask(bad, generator.bytes(int(generator.integers(0, 300))))
                assert isinstance(answer, str)
            assert ask(good, GOOD)["actions"].shape == (15, 2)
        assert "binary" in ask(good, "text")


def test_a_message_that_is_too_large_ends_its_connection(policy, server):
    address, _ = server
    connection, _ = open_connection(address)
    with connection, pytest.raises(ConnectionClosed) as caught:
        ask(connection, b"\0" * (message_limit(policy.shape) + 1))
    assert caught.value.rcvd.code == 1009


def test_requests_of_clients_that_left_are_forgotten():
    policy = build("bc")
    entered, release, sizes = threading.Event(), threading.Event(), []
    predict = policy.predict_chunk

    def wait(obs, **arguments):
        sizes.append(len(obs["obs"]))
        entered.set()
        assert release.wait(10)
        return predict(obs, **arguments)

    policy.predict_chunk = wait
    reports: list[str] = []
    with serving(policy, report=reports.append) as (address, _):
        leaving = [open_connection(address)[0] for _ in range(5)]
        for connection in leaving:
            connection.send(pack(GOOD))
            assert entered.wait(10)
        time.sleep(0.2)
        for connection in leaving:
            connection.socket.shutdown(socket.SHUT_RDWR)
        end = time.monotonic() + 10
        while sum("closed" in line for line in reports) < 5:
            assert time.monotonic() < end
            time.sleep(0.01)
        release.set()
        connection, _ = open_connection(address)
        with connection:
            assert ask(connection, GOOD)["actions"].shape == (15, 2)
    assert sizes == [1, 1]


def test_a_row_that_fails_does_not_harm_the_batch():
    policy = build("bc")
    entered, release, predict = threading.Event(), threading.Event(), policy.predict_chunk

    def wait(obs, **arguments):
        entered.set()
        assert release.wait(10)
        if bool((obs["obs"] > 1e6).any()):
            raise RuntimeError("overflow")
        return predict(obs, **arguments)

    policy.predict_chunk = wait
    with serving(policy) as (address, _), ThreadPoolExecutor(4) as threads:
        connections = [open_connection(address)[0] for _ in range(4)]
        messages = [GOOD, GOOD, {STATE: np.full((2, 20), 3e38)}, GOOD]
        futures = [threads.submit(ask, connections[0], messages[0])]
        assert entered.wait(10)  # The others wait together.
        futures += [
            threads.submit(ask, *pair) for pair in zip(connections[1:], messages[1:], strict=True)
        ]
        time.sleep(0.3)
        release.set()
        answers = [future.result(20) for future in futures]
        for connection in connections:
            connection.close()
    assert answers[2] == "the policy failed (RuntimeError: overflow)"
    assert all(answers[i]["actions"].shape == (15, 2) for i in (0, 1, 3))


def test_a_token_is_needed_if_the_server_has_one(policy):
    with serving(policy, token="secret") as (address, _):
        for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": "secret"}):
            with pytest.raises(InvalidStatus, match=r"401"):
                open_connection(address, additional_headers=headers)
        connection, _ = open_connection(
            address, additional_headers={"Authorization": "Api-Key secret"}
        )
        connection.close()
        assert requests.get(f"{address.replace('ws', 'http', 1)}/healthz").text == "OK\n"


def test_no_web_page_can_connect(server):
    with pytest.raises(InvalidStatus, match="403"):
        open_connection(server[0], origin="http://example.org")


def test_the_number_of_clients_is_limited(policy):
    with serving(policy, max_clients=1) as (address, _):
        connection, _ = open_connection(address)
        with connection, pytest.raises(InvalidStatus, match="503"):
            open_connection(address)


def test_the_rate_of_requests_is_limited(policy):
    with serving(policy, max_rate_hz=10) as (address, _):
        connection, _ = open_connection(address)
        with connection:
            start = time.monotonic()
            for _ in range(6):
                ask(connection, GOOD)
            assert time.monotonic() - start > 0.49


# -- the command ------------------------------------------------------------------------------


def test_other_machines_need_a_token(monkeypatch):
    monkeypatch.delenv("EBT_POLICY_TOKEN", raising=False)
    for host in ("127.0.0.1", "127.0.0.7", "::1", "localhost"):
        assert serve.server_token(host) is None
    for host in ("0.0.0.0", "192.168.0.2", "::", "example.org"):
        with pytest.raises(ConfigError, match="set the environment variable EBT_POLICY_TOKEN"):
            serve.server_token(host)
    monkeypatch.setenv("EBT_POLICY_TOKEN", "secret")
    assert serve.server_token("0.0.0.0") == serve.server_token("127.0.0.1") == "secret"
    monkeypatch.setenv("EBT_POLICY_TOKEN", "gehe\u00ediim")
    with pytest.raises(ConfigError, match="ASCII"):
        serve.server_token("127.0.0.1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "missing required option checkpoint=RUN"),
        (("checkpoint=x", "port=70000"), "port must be in 0 to 65535, got 70000"),
        (("checkpoint=x", "max_batch=0"), "max_batch must be at least 1, got 0"),
        (("checkpoint=x", "max_rate_hz=0"), "max_rate_hz must be positive and finite"),
        (("checkpoint=x", "host=0.0.0.0"), "set the environment variable EBT_POLICY_TOKEN"),
        (("checkpoint=nothing",), "nothing"),
    ],
)
def test_errors_of_the_command_are_one_line(arguments, words, monkeypatch, capsys):
    monkeypatch.delenv("EBT_POLICY_TOKEN", raising=False)
    monkeypatch.setattr("sys.argv", ["ebt-serve", *arguments])
    with pytest.raises(SystemExit) as caught:
        serve.main()
    error = capsys.readouterr().err
    assert caught.value.code == 2 and words in error
    assert_one_line_error(error)


def test_a_port_in_use_is_an_error(server, monkeypatch, capsys):
    port = server[0].rpartition(":")[2]
    monkeypatch.setattr(
        "sys.argv", ["ebt-serve", "checkpoint=pretrained:push_t", f"port={port}", "device=cpu"]
    )
    with pytest.raises(SystemExit):
        serve.main()
    assert f"port={port} cannot be used" in capsys.readouterr().err
