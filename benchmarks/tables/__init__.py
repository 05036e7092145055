"""Markdown tables of stored results, one file for each field."""
