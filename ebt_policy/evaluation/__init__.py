"""Evaluation code that all domains share: entries, statistics, tables, figures and reports."""
