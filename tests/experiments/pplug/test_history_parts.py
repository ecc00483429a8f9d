"""The parts of histories that a run reads, and the settings of a run."""

import json

import numpy as np
import pytest

from jaxalign.data.headlines import huffpost
from jaxalign.data.histories import Histories, Item, Sample
from jaxalign.errors import InputError
from jaxalign.experiments.pplug import data as sources
from jaxalign.experiments.pplug.config import (
    PPlugEvaluateConfig,
    PPlugRunConfig,
    RetrievalConfig,
)
from jaxalign.experiments.pplug.data import HistoryDataConfig


def lamp_files(folder, part, ids=("1", "2"), outputs=True, nested=False):
    folder = folder / part if nested else folder
    folder.mkdir(parents=True, exist_ok=True)
    item = {"id": "9", "text": "long", "title": "short"}
    asked = "Generate a headline for the following article: {}"
    rows = [{"id": one, "input": asked.format(one), "profile": [item]} for one in ids]
    (folder / f"{part}_questions.json").write_text(json.dumps(rows))
    if outputs:
        golds = [{"id": one, "output": "x"} for one in ids]
        told = {"task": "LaMP_4", "golds": golds}
        (folder / f"{part}_outputs.json").write_text(json.dumps(told))


@pytest.mark.parametrize("nested", [False, True])
def test_lamp_folders(tmp_path, nested):
    lamp_files(tmp_path, "train", nested=nested)
    lamp_files(tmp_path, "dev", ("3",), nested=nested)
    lamp_files(tmp_path, "test", ("4",), outputs=False, nested=nested)
    config = HistoryDataConfig(task="LaMP_4")
    found = sources.read_parts(tmp_path, config, sources.PARTS)
    ids = {part: [one.id for one in own.samples] for part, own in found.items()}
    assert ids == {"train": ["1", "2"], "validation": ["3"], "test": ["4"]}
    assert found["test"].samples[0].output is None
    with pytest.raises(InputError, match="answers LaMP_4, expected LaMP_5"):
        sources.read_parts(tmp_path, HistoryDataConfig(task="LaMP_5"), ("train",))
    lamp_files(tmp_path, "train", ("1", "7"), outputs=False, nested=nested)
    with pytest.raises(InputError, match="id '7' has no answer"):
        sources.read_parts(tmp_path, config, ("train",))


def test_a_subset_is_even_over_users():
    sizes = (9, 3, 1, 5)
    samples = [
        Sample(f"{user}/{place}", str(user), "a", "b", (0,))
        for user, size in enumerate(sizes)
        for place in range(size)
    ]
    data = Histories(tuple(samples), (Item("0", {"text": "a"}),), "text")
    for count, wanted in ((4, (1, 1, 1, 1)), (10, (3, 3, 1, 3)), (13, (4, 3, 1, 5))):
        found = sources.sample_evenly(data, count, 0)
        counts = tuple(found.users.count(str(user)) for user in range(4))
        assert sorted(counts) == sorted(wanted) if count != 13 else sum(counts) == 13
        assert [one.id for one in found.samples] == sorted(
            (one.id for one in found.samples), key=[one.id for one in samples].index
        )
        assert set(found.samples) <= set(sources.sample_evenly(data, count + 1, 0).samples)
    assert sources.sample_evenly(data, None, 0) is data
    assert sources.data_digest(sources.sample_evenly(data, 4, 0)) != sources.data_digest(
        sources.sample_evenly(data, 4, 1)
    )


def test_settings_that_cannot_be_used_are_refused():
    for make in (
        lambda: PPlugRunConfig(trainings=("other",)),
        lambda: PPlugRunConfig(trainings=()),
        lambda: PPlugRunConfig(seeds=(0, 0)),
        lambda: PPlugRunConfig(baseline_seeds=(-1,)),
        lambda: HistoryDataConfig(train_samples=0),
        lambda: HistoryDataConfig(test_share=0.6, validation_share=0.5),
        lambda: HistoryDataConfig(test_share=np.nan),
        lambda: HistoryDataConfig(validation_share=np.nan),
        lambda: huffpost("nowhere", validation_share=np.nan),
        lambda: HistoryDataConfig("huffpost", task="LaMP_4"),
        lambda: PPlugEvaluateConfig(samples=1),
        lambda: PPlugEvaluateConfig(temperature=np.nan),
        lambda: RetrievalConfig(count=0),
    ):
        with pytest.raises(InputError, match="expected"):
            make()
    config = PPlugRunConfig(trainings=("task", "pplug"), seeds=(0, 1), baseline_seeds=(2,))
    assert config.schedule == (("pplug", 0), ("pplug", 1), ("task", 2))
