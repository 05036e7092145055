"""Measurements behind README and docs, as commands. Never run as tests."""
