"""Demonstrations: episodes on disk, windows for training, normalisation and data sets."""
