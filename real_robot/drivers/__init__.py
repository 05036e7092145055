"""Robots behind one small interface (`base.Driver`)."""
