"""Weights that are not floats of the model's dtype: which scheme reads and holds them."""
