"""A user-reward method is added as CONTRIBUTING says: one file and one line, and nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from few_choices import write_choices

from jaxalign import mrm
from jaxalign.data import load_features, load_source, lookup
from jaxalign.errors import InputError
from jaxalign.experiments.mrm import MRMRunConfig, run
from jaxalign.mrm.config import ChoiceDataConfig, FeatureConfig
from jaxalign.mrm.reduce import identity
from jaxalign.mrm.registry import CAPABILITIES
from jaxalign.mrm.support_query import TrainingData, training_choices

ROOT = Path(__file__).resolve().parents[2]
USE = """
import dataclasses, json
from jaxalign import mrm
from jaxalign.cli import main
from jaxalign.config import load_config
from jaxalign.data import load_features, load_source, lookup
from jaxalign.experiments import mrm as experiment

options = ["--methods", "bayes", "mean_difference", "--fold_methods", "mean_difference",
           "--mean_difference.shares", "0", "0.5", "--bayes.em_steps", "4", "--seeds", "2",
           "--split.item_folds", "2", "--split.min_support", "3", "--split.min_query", "3",
           "--features.path", "features.npz", "--draws", "100", "--shots", "0", "5",
           # So few users cannot pass a test at 5 %, and the gate would leave most of them alone.
           "--adaptation.significance", "1", "--adaptation.kept_gain", "1"]
config = load_config(experiment.MRMRunConfig, None, [*options, "--select", "mean_difference"])
report = experiment.run(config, "choices.jsonl", "run", show=False)
judged = experiment.evaluate("run", "choices.jsonl")
model = mrm.load("run")
choices, features = load_source("choices.jsonl").choices, load_features("features.npz")
users = mrm.adapt_users(model, choices, features)
users.save("users.sqlite")
model = dataclasses.replace(model, users=mrm.open_users("users.sqlite", model.digest))
texts = ["answer 1", "answer 2", "answer 3"]
ranked = {
    str(user): [r.position for r in mrm.rank(model, user, texts, lookup(features, texts))]
    for user in (None, *choices.users)
}
assert main(["mrm", "adapt", "--model", "run", "--data", "choices.jsonl",
             "--features", "features.npz"]) == 0
print(json.dumps({
    "report": report, "judged": judged, "method": model.method.name, "ranked": ranked,
    "candidate": model.candidate, "shares": model.method.settings.shares,
    "accuracy": [user.accuracy for user in users],
}))
"""


def recipe() -> dict[str, str]:
    """What CONTRIBUTING says to write: path -> code."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    section = text.split("### A user-reward method\n")[1].split("\n### ")[0]
    blocks = re.findall(r"`(jaxalign/[\w/]+\.py)`:\n\n```python\n(.*?)```", section, re.DOTALL)
    return dict(blocks)


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """What a package with the recipe's method makes of some choices."""
    root = tmp_path_factory.mktemp("recipe")
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "jaxalign", root / "jaxalign", ignore=ignored)
    new, line = recipe().items()
    assert not (root / new[0]).exists()
    (root / new[0]).write_text(new[1])
    assert line[1].count("\n") == 1
    with open(root / line[0], "a") as handle:
        handle.write(line[1])
    write_choices(root)
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


def test_a_new_method_is_compared_in_every_regime(added):
    report = added[0]["report"]
    for regime in ("new_users", "new_items", "new_users_new_items"):
        figures = report[regime]["mean_difference"]
        assert figures["gain_low"] <= figures["gain"] <= figures["gain_high"]
    assert [point[0] for point in report["shots"]["mean_difference"]] == [0, 5]


def test_its_candidates_are_chosen_by_validation_and_its_settings_set(added):
    found = added[0]
    assert found["shares"] == [0, 0.5]
    assert found["candidate"] in found["report"]["settings"]["mean_difference"]
    assert np.isfinite(found["report"]["validation_nll"]["mean_difference"])


def test_it_is_saved_loaded_and_judged_again(added):
    found = added[0]
    assert found["method"] == found["judged"]["method"] == "mean_difference"
    reported = found["report"]["new_users"]["mean_difference"]
    assert found["judged"]["nll"] == pytest.approx(reported["nll"], abs=0.05)


def test_users_are_adapted_and_ranked_for(added):
    found, printed = added
    assert 0.5 < np.mean(found["accuracy"]) <= 1
    assert all(sorted(order) == [0, 1, 2] for order in found["ranked"].values())
    assert len({tuple(order) for order in found["ranked"].values()}) > 1
    assert "declares no weights" in printed


# Every method that comes with the package ------------------------------------------------------


TINY = {
    "mixture": {"components": (2,), "em_steps": 2},
    "lore": {"ranks": (2,), "steps": 5, "decays": (1e-3,)},
    "lore_published": {"ranks": (2,), "steps": 5, "decays": (1e-3,), "few_shot_steps": 5},
    "pal": {"prototypes": (2,), "steps": 4, "snapshots": 2, "few_shot_steps": (2,)},
    "neighbours": {"counts": (3,), "shares": (1.0,)},
    "mrm": {"epochs": 2, "snapshots": 1, "hidden_sizes": (3,), "users_per_batch": 4},
    "mrm_published": {"epochs": 2, "snapshots": 1, "users_per_batch": 4},
    "bayes": {"em_steps": 2, "pseudo_users": (10.0,)},
    "vpl": {"epochs": 2, "snapshots": 1, "users_per_batch": 4, "latent": 2, "hidden": 4},
    "gpo": {"epochs": 2, "snapshots": 1, "users_per_batch": 4, "width": 4, "heads": 1,
            "feed_forward": 4, "layers": 1},
    "pttt": {"epochs": 2, "snapshots": 1, "users_per_batch": 4, "hidden": 4, "width": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Choices, and what a method learned from them, by name."""
    root = tmp_path_factory.mktemp("choices")
    write_choices(root)
    choices, table = (
        load_source(root / "choices.jsonl").choices,
        load_features(root / "features.npz"),
    )
    values = jnp.asarray(lookup(table, choices.items))
    pairs = training_choices(choices, choices.users, ChoiceDataConfig(), 0)
    data = TrainingData(values, values, pairs)

    def fit(name):
        settings = replace(mrm.METHODS[name].settings, **TINY.get(name, {}))
        method = mrm.make_method(name, settings)
        return method, method.fit(data, 0)

    return choices, table, data, fit


NAMES = [name for name, entry in mrm.METHODS.items() if "new_items" in entry.cls.capabilities]


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_method_predicts_adapts_and_ranks_as_the_fitted_one(name, fitted, tmp_path):
    choices, table, data, fit = fitted
    method, learned = fit(name)
    candidate = [one for one in method.candidates(learned) if one.get("adapt", True)][-1]
    width = data.features.shape[1]
    model = mrm.UserModel(
        method, learned, candidate, np.zeros(width), identity(width), FeatureConfig(path="given")
    )
    mrm.save(tmp_path, model)
    loaded = mrm.load(tmp_path)
    assert loaded.method.settings == method.settings
    pairs = data.pairs._replace(weight=data.pairs.weight.at[0].set(0))
    predicted = [
        m.method.predict(m.fitted, [m.candidate], data.features, pairs, data.pairs)[0]
        for m in (model, loaded)
    ]
    np.testing.assert_allclose(predicted[0], predicted[1], rtol=1e-6, atol=1e-7)
    # Swapping the items of a pair gives one minus the probability.
    swapped = data.pairs._replace(chosen=data.pairs.rejected, rejected=data.pairs.chosen)
    other = method.predict(learned, [candidate], data.features, pairs, swapped)[0]
    np.testing.assert_allclose(predicted[0] + other, 1, rtol=0, atol=1e-5)
    users = mrm.adapt_users(loaded, choices, table)
    users.save(tmp_path / "users.sqlite")
    loaded = mrm.load(tmp_path)
    assert bool(loaded.users.about.weights) == ("weights" in method.capabilities)
    texts = [f"answer {item}" for item in range(4)]
    values = lookup(table, texts)
    for user in (None, choices.users[0], choices.users[1]):
        ranked = mrm.rank(loaded, user, texts, values)
        assert sum(entry.probability for entry in ranked) == pytest.approx(2)
        scores = [entry.score for entry in ranked]
        assert scores == sorted(scores, reverse=True)
    # What a user's weights say is what the method predicts from the user's choices.
    if "weights" in method.capabilities:
        place = choices.users.index(choices.users[1])
        base = loaded.base(np.asarray(data.features))
        mean = users.get(choices.users[1]).weights
        margin = (base[data.pairs.chosen[place]] - base[data.pairs.rejected[place]]) @ mean
        both = method.predict(learned, [candidate], data.features, data.pairs, data.pairs)[0]
        strict = np.abs(margin) > 1e-3
        np.testing.assert_array_equal((margin > 0)[strict], (both[place] > 0.5)[strict])
    again = replace(loaded, digest="")
    assert mrm.rank(again, None, texts, values) == mrm.rank(loaded, None, texts, values)


def test_a_missing_capability_is_refused_by_name(tmp_path):
    for capability, what in CAPABILITIES.items():
        method = mrm.make_method("item_ids")
        with pytest.raises(InputError, match=f"item_ids declares no {capability}") as raised:
            mrm.require(method, capability, "this command")
        assert what in str(raised.value)
    config = replace(MRMRunConfig(), select="item_ids")
    with pytest.raises(InputError, match=r"item_ids declares no new_items.*select"):
        run(config, str(tmp_path / "choices.jsonl"), tmp_path / "run", show=False)
    config = replace(MRMRunConfig(), select="vpl")
    with pytest.raises(InputError, match="select: found 'vpl'"):
        run(config, str(tmp_path / "choices.jsonl"), tmp_path / "run", show=False)
    with pytest.raises(InputError, match="is not a user-reward method"):
        mrm.make_method("majority")
    with pytest.raises(InputError, match="taken"):
        mrm.register("bayes", mrm.BayesConfig())


def test_only_a_posterior_gives_a_prior(fitted):
    _, _, data, fit = fitted
    width = data.features.shape[1]
    for name in ("bayes", "vpl"):
        method, learned = fit(name)
        candidate = method.candidates(learned)[0]
        model = mrm.UserModel(
            method, method.load(learned), candidate, np.zeros(width), identity(width),
            FeatureConfig(path="given"),
        )  # fmt: skip
        if name == "bayes":
            prior = model.prior()
            strength, temperature = candidate["strength"], candidate["temperature"]
            mean, cov = learned["mean"] / temperature, learned["cov"] / temperature**2 * strength
            np.testing.assert_allclose(prior.mean, mean, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(prior.cov, cov, rtol=1e-4, atol=1e-5)
            belief = mrm.init_belief(prior)
            assert belief.differences.shape[1] == width
        else:
            with pytest.raises(InputError, match="vpl declares no posterior"):
                model.prior()
