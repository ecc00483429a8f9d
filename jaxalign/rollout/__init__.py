"""Prompts in, completions with log-probabilities and rewards out."""
