"""What every run leaves behind: its folder, its artifacts, its metrics, tables and plots."""

from jaxalign.runs.artifact import (
    Artifact,
    load_arrays,
    load_artifact,
    save_arrays,
    save_artifact,
)
from jaxalign.runs.log import MetricsLog
from jaxalign.runs.row_file import RowFile, open_row_file
from jaxalign.runs.run_dir import RunDir, finished_report, open_run_dir

__all__ = [
    "Artifact",
    "MetricsLog",
    "RowFile",
    "RunDir",
    "finished_report",
    "load_arrays",
    "load_artifact",
    "open_row_file",
    "open_run_dir",
    "save_arrays",
    "save_artifact",
]
