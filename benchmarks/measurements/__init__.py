"""Measurements of studies beyond the evaluations of ``ebt_policy.eval``, one file each."""
