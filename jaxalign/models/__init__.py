"""Flax (Linen) modules with plain nested dicts of parameters, and their weights."""

from jaxalign.models.embed import Encoder, encode, load_encoder

__all__ = ["Encoder", "encode", "load_encoder"]
