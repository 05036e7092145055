"""Labels of evaluated policies: a training run and its inference options in words."""

from __future__ import annotations

import re
from collections.abc import Mapping

from benchmarks.tables.cells import Result

# Training run of a study -> its label.
RUNS = {
    "ebt": "energy",
    "ebt_12500": "energy",
    "flow_matching": "flow matching",
    "bc": "behaviour cloning",
    "ibc": "implicit behaviour cloning",
    # composition
    "ebt_product": "product of two energies",
    "flow_product": "summed fields of flow matching",
    "ebt_a": "energy, first half",
    "ebt_b": "energy, second half",
    "ebt_all": "energy, all demonstrations",
    # few_data
    **{f"ebt_{data}": "energy" for data in ("20", "4")},
    **{f"flow_{data}": "flow matching" for data in ("20", "4", "4_longer")},
    # one_step
    "ebt_reflow": "energy after reflow",
    "flow_reflow": "flow matching after reflow",
    # ebt_policy
    "ebt_policy": "EBT-Policy, equal time",
    "ebt_policy_12500": "EBT-Policy, equal updates",
    # ablations
    "whole": "default",
    "no_relative": "absolute actions",
    "no_align": "demonstrations not aligned",
    "no_mirror": "no mirror images",
    "two_samples": "two noise samples per target",
    "no_level": "energy without the level",
    **{name: f"`objective={name}`" for name in ("equilibrium", "s1", "s2", "contrastive")},
}
# Whole entry -> its label.
ENTRIES = {
    "LeRobot diffusion": "LeRobot: Diffusion Policy, DDPM-100",
    "LeRobot ebt": "plug-in: energy, 2 steps, lowest energy of 8",
    "LeRobot ebt (steps 8)": "plug-in: energy, 8 steps, lowest energy of 8",
    "ebt.pth": "`ebt`, 2 steps, lowest energy of 8",
    "bc_rnn.pth": "BC-RNN with Gaussian mixtures",
    "bc.pth": "BC",
    "first of the proposals": "no judge (the first proposal)",
}
RULES = {  # value of `select` -> what is selected, of M candidates
    "energy": "lowest energy",
    "medoid": "medoid",
    "density": "density vote",
    "line_integral": "line integral",
    "drop": "largest energy decrease",  # name of the version that measured it
}


def entry_label(name: str, runs: Mapping[str, str] | None = None) -> str:
    """Return the label of an entry.

    For ``ebt (steps 2, candidates 8)``, it is ``energy, 2 steps, lowest energy of 8``.

    Args:
        name: ``RUN`` or ``RUN (OPTION VALUE, ...)``, with the scheduler of diffusion as first
            option. A name of another form is its own label.
        runs: labels of runs that differ from `RUNS`.
    """
    if name in ENTRIES:
        return ENTRIES[name]
    match = re.fullmatch(r"(\w+)(?: \((?:(dd[ip]m), )?(.*)\))?", name)
    if match is None or match[1] not in (known := {"diffusion": "", **RUNS, **(runs or {})}):
        return name
    run, scheduler, listed = match.groups()
    options = dict(option.split(" ") for option in listed.split(", ")) if listed else {}
    parts = [known[run]] if known[run] else []
    steps, count = options.get("steps"), options.get("candidates")
    if scheduler:
        parts.append(f"{scheduler.upper()}-{steps}")
    elif steps:
        parts.append("1 step" if steps == "1" else f"{steps} steps")
    if "metropolis_steps" in options:
        parts.append(f"{options['metropolis_steps']} Metropolis steps")
    if "samples" in options:
        parts.append(f"{options['samples']} samples")
    if count == "1" or (count is None and steps):
        parts.append("one sample")
    elif count:
        parts.append(f"{RULES[options.get('select', 'energy')]} of {count}")
    if "level" in options:
        parts.append(f"scored at level {options['level']}")
    return ", ".join(parts)


def labelled(result: Result) -> Result:
    """Return a stored result whose entries have their labels as names, for a figure."""
    entries = [{**entry, "name": entry_label(entry["name"])} for entry in result["entries"]]
    return {**result, "entries": entries}
