"""jaxalign beside PyTorch: both sides in one run, `python -m benchmarks NAME`."""
