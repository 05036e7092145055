"""Formats of robot data sets, one module each (see `ebt_policy.data.dataset`)."""
