"""The measurement of inference delay: which episodes are compared."""

from __future__ import annotations

from benchmarks.measurements.execution_delay import CONDITIONED, paired


def rows(scores: list[float]) -> list[dict[str, float]]:
    return [{"score": score, "success": score > 0.5} for score in scores]


def test_modes_of_a_policy_and_policies_with_the_same_mode_are_compared():
    episodes = {
        ("ebt", "blocking", 0): [rows([0.2, 0.4]), rows([0.8, 1.0])],
        ("ebt", "asynchronous", 0): [rows([0.1, 0.3]), rows([0.7, 0.9])],
        ("ebt", CONDITIONED, 0): [rows([0.2, 0.4]), rows([0.8, 1.0])],
        ("flow_matching", "blocking", 0): [rows([0.2, 0.4]), rows([0.8, 1.0])],
        ("flow_matching", "blocking", 100): [rows([0.5, 0.5]), rows([0.5, 0.5])],
    }
    pairs = {(p["a"], p["b"]): p for p in paired(episodes) if p["metric"] == "score"}
    assert set(pairs) == {
        ("ebt, blocking", "ebt, asynchronous"),
        ("ebt, blocking", f"ebt, {CONDITIONED}"),
        ("ebt, asynchronous", f"ebt, {CONDITIONED}"),
        ("ebt, blocking", "flow_matching, blocking"),
    }
    assert {pair["delay_ms"] for pair in pairs.values()} == {0}

    def width(b: str) -> float:
        low, high = pairs["ebt, blocking", b]["ci95"]
        return high - low

    # Both modes play the same training runs. A policy that is conditioned was trained separately.
    assert width("ebt, asynchronous") < 1e-9
    assert width(f"ebt, {CONDITIONED}") > 0.5 and width("flow_matching, blocking") > 0.5
