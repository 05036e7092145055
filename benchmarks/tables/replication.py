"""Tables of the replication of EBT-Policy: steps, rivals, energies."""

from __future__ import annotations

from benchmarks.tables.cells import Result, difference, interval
from benchmarks.tables.entry_labels import entry_label
from ebt_policy.evaluation.tables import markdown
from ebt_policy.policies.metrics import METRICS

RUNS = ("ebt_policy", "ebt_policy_12500")
COUNTS = ("1", "8")
STEPS = {
    **{f"steps {n}": str(n) for n in (1, 2, 4, 8, 20)},
    "steps 20, stop_grad_norm 0.001": "up to 20",
}
LABELS = {"ebt_12500": "default objective"}  # labels of runs in these tables
DEFAULT = "ebt_12500 (steps 2, candidates 8)"
CLAIMED = (  # the differences of the claims, a - b
    ("ebt_policy (steps 2, candidates 8)", DEFAULT),
    ("ebt_policy_12500 (steps 2, candidates 8)", DEFAULT),
    ("ebt_policy_12500 (steps 2, candidates 1)", "diffusion (ddpm, steps 100)"),
)


def steps(result: Result) -> str:
    """Return tables of score and success over descent steps, for each run and selection."""
    entries = {entry["name"]: entry for entry in result["entries"]}
    columns = [(run, count) for run in RUNS for count in COUNTS]
    labels = [entry_label(f"{run} (candidates {count})") for run, count in columns]
    tables = []
    for metric in METRICS:
        rows = [
            (
                label,
                *(
                    interval(entries[f"{run} ({how}, candidates {n})"][metric])
                    for run, n in columns
                ),
            )
            for how, label in STEPS.items()
        ]
        tables.append(markdown((f"descent steps, {metric}", *labels), rows, left=1))
    return "\n".join(tables)


def rivals(result: Result) -> str:
    """Return a table of the other policies, and a table of the claimed differences."""
    others = [e for e in result["entries"] if e["name"].split(" ")[0] not in RUNS]
    rows = [(entry_label(e["name"], LABELS), *(interval(e[m]) for m in METRICS)) for e in others]
    pairs = {(pair["a"], pair["b"], pair["metric"]): pair for pair in result["paired"]}
    gaps = [
        (
            f"“{entry_label(a)}” minus “{entry_label(b, LABELS)}”",
            *(difference(pairs[a, b, metric]) for metric in METRICS),
        )
        for a, b in CLAIMED
    ]
    tables = (("policy", rows), ("difference", gaps))
    return "\n".join(markdown((first, *METRICS), table, left=1) for first, table in tables)


def energies(result: Result) -> str:
    """Return a table of energies, gradient norms and errors over the descent steps of a policy."""
    tables = []
    for entry in result["entries"]:
        count = len(entry["energy"])
        keys = ("energy", "grad_norm", "error")
        rows = [
            (str(k), *(f"{entry[key][k]['mean']:.3g}" for key in keys))
            for k in (0, 1, 2, 4, 8, count - 1)
        ]
        header = (
            f"step of {entry_label(entry['name'], LABELS)}",
            "energy above the last one",
            "gradient norm",
            "error before the step",
        )
        tables.append(markdown(header, rows, left=0))
    return "\n".join(tables)
