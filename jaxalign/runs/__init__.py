"""What every run leaves behind: its folder, its artifacts, its metrics, tables and plots."""

from jaxalign.runs.artifact import (
    Artifact,
    load_arrays,
    load_artifact,
    save_arrays,
    save_artifact,
)
from jaxalign.runs.log import MetricsLog
from jaxalign.runs.run_dir import RunDir, finished_report, open_run_dir

__all__ = [
    "Artifact",
    "MetricsLog",
    "RunDir",
    "finished_report",
    "load_arrays",
    "load_artifact",
    "open_run_dir",
    "save_arrays",
    "save_artifact",
]
