"""Evaluation: intervals (`stats`), the results contract (`summary`), pictures and the report."""
