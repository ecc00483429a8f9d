"""Choices of the authors' files to a run: X.pt beside X.json, without torch in the library."""

import json

import numpy as np
import torch

from jaxalign.config import load_config
from jaxalign.experiments.mrm import MRMRunConfig, run


def test_authors_files_run_end_to_end(tmp_path):
    rng = np.random.default_rng(0)
    width, table, rows = 12, {}, []
    for user in range(16):
        taste = rng.normal(size=width)
        table[f"user{user}"] = []
        for conversation in range(6):
            for _ in range(2):
                pair = rng.normal(size=(2, width))
                pair = pair[np.argsort(-(pair @ taste))]
                entry = {
                    "conversation_id": f"c{conversation}",
                    "prompt": "p",
                    "chosen": f"text {len(rows)}",
                    "rejected": f"text {len(rows) + 1}",
                    "chosen_idx": len(rows),
                    "rejected_idx": len(rows) + 1,
                    "chosen_score": 0.0,
                    "rejected_score": 0.0,
                }
                table[f"user{user}"].append(entry)
                rows += list(pair)
    torch.save(torch.tensor(np.array(rows), dtype=torch.bfloat16), tmp_path / "X.pt")
    (tmp_path / "X.json").write_text(json.dumps(table))
    options = ["--mrm_published.epochs", "2", "--mrm_published.snapshots", "1", "--seeds", "1"]
    options += ["--split.item_folds", "0", "--methods", "bayes", "mrm_published"]
    options += ["--split.min_support", "1", "--split.min_query", "1", "--bayes.em_steps", "4"]
    report = run(
        load_config(MRMRunConfig, None, options),
        str(tmp_path / "X.pt"),
        tmp_path / "out",
        show=False,
    )
    assert set(report["new_users"]) == {"bt", "bt_items", "bayes", "mrm_published"}
    assert report["new_users"]["mrm_published"]["users"] == 8
