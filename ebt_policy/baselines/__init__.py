"""Policies without a descended energy, behind the same interface and on the same network."""
