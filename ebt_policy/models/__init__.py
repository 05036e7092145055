"""Code that the models of several domains share."""
