"""Demonstrations: episodes on disk, windows for training, normalisation, downloads."""
