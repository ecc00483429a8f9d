"""Optimisation, checkpoints, files and progress: what every trainer stands on."""
