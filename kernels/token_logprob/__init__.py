"""Log-probabilities of tokens and entropies of their distributions, without [tokens, V]."""

from jaxalign.kernels.token_logprob.api import BACKENDS, token_logprob

__all__ = ["BACKENDS", "token_logprob"]
