"""Hydra configuration, shipped with the package (found as ``pkg://configs``)."""
