"""Energy policies in robomimic, and policies of robomimic in the evaluation of this package.

``python -m ebt_policy.integrations.robomimic`` runs robomimic's own programs with the algorithm
``ebt``. See docs/how_to/robomimic.md.
"""
