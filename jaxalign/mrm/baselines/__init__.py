"""Rival methods on the same splits: each a fit and a prediction after a few choices."""
