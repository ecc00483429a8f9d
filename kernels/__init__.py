"""Fused operations, imported as `jaxalign.kernels`: one folder each.

Kernels import nothing else of jaxalign. `jaxalign/kernels` is a relative symlink to this folder.
"""
