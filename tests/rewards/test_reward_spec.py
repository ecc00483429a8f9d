"""Rewards as configs name them."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from jaxalign.config import load_config, to_yaml
from jaxalign.errors import InputError
from jaxalign.rewards import spec as module
from jaxalign.rewards.spec import RewardSpec, build_rewards, known_levels
from jaxalign.rewards.vector import compute_rewards

YAML = """
rewards:
- {name: brevity}
- {name: helpful, kind: classifier, model: Ray2333/gpt2-large-helpful-reward_model, dtype: bfloat16}
- {name: harmless, kind: classifier, model: Ray2333/gpt2-large-harmless-reward_model}
- name: humor
  kind: classifier
  model: mohameddhiab/humor-no-humor
  label: 1
  pair: false
  levels: [-2, 3.5]
- name: summary
  kind: classifier
  model: Tristan/gpt2_reward_summarization
  template: "{answer} <|endoftext|> {prompt}"
  between: ["### Input:", "### Response:"]
- {name: long, kind: python, function: "my_rewards:long"}
"""


@dataclass(frozen=True)
class Holder:
    rewards: tuple[RewardSpec, ...] = field(default_factory=lambda: (RewardSpec("brevity"),))


def load(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config(Holder, path, [])


@pytest.fixture
def stand_ins(monkeypatch):
    """Classifiers of random logits, and what was asked for."""
    asked, seen = [], []

    def load_reward_model(name, dtype, shardings):
        asked.append((name, dtype))
        return SimpleNamespace(
            config=SimpleNamespace(dtype=dtype), params={}, labels=("no", "yes"), name=name,
            sha256=f"sha of {name}",
        )  # fmt: skip

    def classify(model, texts, batch_tokens):
        seen.append((model.name, list(texts)))
        return np.tile(np.arange(2, dtype=np.float32), (len(texts), 1))

    monkeypatch.setattr(module, "load_reward_model", load_reward_model)
    monkeypatch.setattr("jaxalign.rewards.vector.classify", classify)
    return asked, seen


def test_the_literatures_rewards_are_loaded_by_name(tmp_path, stand_ins, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def long(_, answers): return list(map(len, answers))\n"
    )
    monkeypatch.chdir(tmp_path)
    specs = load(tmp_path, YAML).rewards
    asked, seen = stand_ins
    reward = build_rewards(specs)
    assert asked == [
        ("Ray2333/gpt2-large-helpful-reward_model", "bfloat16"),
        ("Ray2333/gpt2-large-harmless-reward_model", "float32"),
        ("mohameddhiab/humor-no-humor", "float32"),
        ("Tristan/gpt2_reward_summarization", "float32"),
    ]
    assert reward.names == ("brevity", "helpful", "harmless", "humor", "summary", "long")
    found = compute_rewards(reward, ["### Input: a post ### Response: "], ["short"])
    np.testing.assert_allclose(found, [[-np.log(2), 0, 0, 1, 0, 5]], rtol=1e-6)
    pair = ("### Input: a post ### Response: ", "short")
    assert [texts for _, texts in seen] == [
        [pair], [pair], ["short"], ["short <|endoftext|> a post"]
    ]  # fmt: skip
    assert known_levels(specs) == {"humor": (-2.0, 3.5)}


def test_a_config_survives_yaml(tmp_path):
    config = load(tmp_path, YAML)
    assert load(tmp_path, to_yaml(config)) == config


def test_one_classifier_is_loaded_once(stand_ins):
    logits = [RewardSpec(n, "classifier", model="m", label=i) for i, n in enumerate("ab")]
    reward = build_rewards(logits)
    assert stand_ins[0] == [("m", "float32")]
    assert compute_rewards(reward, ["p"], ["q"]).tolist() == [[0, 1]]


def test_names_alike_are_refused_before_a_classifier_is_loaded(stand_ins):
    alike = [RewardSpec("a", "classifier", model=name) for name in "mn"]
    with pytest.raises(InputError, match="no two alike"):
        build_rewards(alike)
    assert stand_ins[0] == []


def test_a_functions_id_follows_its_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = []
    for name, text in (("one_reward", "1"), ("two_reward", "2")):
        (tmp_path / f"{name}.py").write_text(f"def f(p, a): return [{text}] * len(a)\n")
        reward = build_rewards([RewardSpec("r", "python", function=f"{name}:f")])
        ids.append(reward.id.split(":")[-1])
        assert compute_rewards(reward, ["p"], ["a"]).tolist() == [[float(text)]]
    assert ids[0] != ids[1]


CLASSIFIER = "rewards: [{name: a, kind: classifier, model: m"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("rewards: [{name: wit}]", "no reward is registered as 'wit'; choose among brevity"),
        ("rewards: [{name: a, kind: classifier}]", "kind classifier and its model is None"),
        ("rewards: [{name: brevity, model: m}]", "kind rule and its model is 'm'"),
        ("rewards: [{name: brevity, label: 1}]", "has label, which only classifiers have"),
        ("rewards: [{name: brevity, pair: false}]", "has pair, which only classifiers"),
        ("rewards: [{name: brevity, levels: [1, 1]}]", "expected the raw reward of level 0"),
        ("rewards: [{name: brevity, levels: [1, .inf]}]", "level 1, both finite"),
        (f"{CLASSIFIER}, template: 'x'}}]", "the template 'x' of a has no {answer}"),
        (f"{CLASSIFIER}, batch_tokens: 0}}]", "has label 0 and batch_tokens 0"),
        (f"{CLASSIFIER}, label: -1}}]", "has label -1 and batch_tokens None"),
        (f"{CLASSIFIER}, between: ['', b]}}]", r"has the marks \['', 'b'\] in between"),
        ("rewards: [{name: a, kind: python}]", "kind python and its function is None"),
        ("rewards: [{name: a, modell: m}]", "key `rewards`, entry 1: `modell` does not exist"),
        ("rewards: [{kind: rule}]", "key `rewards`, entry 1: `name` is missing"),
        ("rewards: [{name: a, kind: oracle}]", "rewards"),
    ],
)
def test_wrong_configs_are_refused(tmp_path, text, match):
    with pytest.raises(InputError, match=match):
        load(tmp_path, text)


def test_functions_that_cannot_be_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_reward.py").write_text("1 / 0\n")
    (tmp_path / "leaving_reward.py").write_text("raise SystemExit(3)\n")
    for place, match in [
        ("no_colon", "expected module:function"),
        ("not_there_at_all:f", "not_there_at_all cannot be imported"),
        ("broken_reward:f", "cannot be imported .ZeroDivisionError"),
        ("leaving_reward:f", r"the reward r: leaving_reward cannot be imported .SystemExit: 3"),
        ("json:nothing", "json has no function 'nothing'"),
    ]:
        with pytest.raises(InputError, match=match):
            build_rewards([RewardSpec("r", "python", function=place)])
    with pytest.raises(InputError, match="names no rewards"):
        build_rewards([])
