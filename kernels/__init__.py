"""Fused operations, imported as `jaxalign.kernels`: one folder each.

Of jaxalign, kernels import the errors and the name of the backend alone. `jaxalign/kernels` is a
relative symlink to this folder.
"""
