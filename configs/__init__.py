"""Hydra configuration, shipped with the package (found as ``pkg://ebt_policy.configs``)."""
