"""Measurements behind the README, as commands. Never run as tests."""
