"""Metrics: pure functions of arrays that know no method."""

from jaxalign.metrics import users

__all__ = ["users"]
