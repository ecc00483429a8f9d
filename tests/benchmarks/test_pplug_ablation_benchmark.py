"""The ablation of personas: its cells, what they vary, and that finished ones are kept."""

import argparse
import json

from benchmarks import harness, pplug_ablation


def test_the_cells_vary_four_settings_and_nothing_else():
    cells = list(pplug_ablation.cells())
    assert len({cell.name for cell in cells}) == 16
    configs = [pplug_ablation.cell_config(cell, 8, 4) for cell in cells]
    assert {one.data.train_samples for one in configs} == {8}
    assert len({(one.data, one.pplug.loop, one.pplug.optimiser) for one in configs}) == 1
    settings = {(one.pplug.persona, one.pplug.text) for one in configs}
    assert len(settings) == 16
    assert {one.pplug.encoder_rate for one in configs if one.pplug.persona.mean} == {None}


def test_a_finished_training_is_kept(tmp_path, monkeypatch):
    gain = {"mean": -0.2, "low": -0.3, "high": -0.1, "standard_error": 0.05, "detectable": 0.1}
    trained = []

    def train(config, model, encoder, data, folder, store, resume):
        trained.append((folder.name, resume))
        folder.mkdir(exist_ok=True)
        (folder / "report.json").write_text("{}")

    def evaluate(folder, out, store, resume):
        own = {"mean": 1.4, "gains": {"persona of another": gain}}
        metrics = {"label loss": {"methods": {"persona": own}}}
        scores = {"persona": {"accuracy": 0.4}}
        return {"statistics": {"metrics": metrics, "scores": scores}}

    monkeypatch.setattr(pplug_ablation, "train_plugs", train)
    monkeypatch.setattr(pplug_ablation, "evaluate", evaluate)
    monkeypatch.setattr(harness, "started", lambda *given: {"benchmark": given[0]})
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=tmp_path / "out")
    pplug_ablation.add_arguments(parser)
    names = ["after-centred-words-mean", "after-raw-words-mean"]
    words = ["--data", str(tmp_path), "--work", str(tmp_path), "--cells", *names]
    arguments = parser.parse_args(words)
    for _ in range(2):
        assert pplug_ablation.run(arguments) == 0
    assert trained == [(name, False) for name in names]
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["cells"][names[0]] == {"loss": 1.4, "over_another": gain, "accuracy": 0.4}
    page = (tmp_path / "out" / "report.md").read_text()
    row = "| after | centred | words | mean | 1.400 | -0.200 (-0.300 to -0.100) |"
    assert row in page
