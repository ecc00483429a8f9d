"""Runs, judging and reports of the methods."""
