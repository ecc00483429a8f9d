"""The main job on data that ships with the package: real answers, simulated people."""

from jaxalign.demo._run import run_demo, write_files

__all__ = ["run_demo", "write_files"]
