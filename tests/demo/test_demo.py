"""The demo as a whole, on a few made-up answers and hashed features; and once on the real ones."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from jaxalign import demo
from jaxalign.data import files
from jaxalign.demo import _run as R
from jaxalign.demo import answers as A
from jaxalign.demo import conditioned as C
from jaxalign.demo import plug as P
from jaxalign.demo import portfolio as T
from jaxalign.demo import study as S
from jaxalign.demo import writer as W
from jaxalign.demo.people import SimulatedChoices, draw_people
from jaxalign.errors import InputError
from jaxalign.metrics.scores import share_of_gap
from jaxalign.models.embed import Encoder
from jaxalign.models.encoder import EncoderConfig

WORDS = ("you", "good", "bad", "thanks", "extraordinary", "dog", "terrible", "lovely", "help")
PLOTS = ("gap.png", "choices_seen.png", "weights.png", "reliability.png", "portfolio.png",
         "preference.png")  # fmt: skip


def tiny_answers(prompts=8, each=6):
    """Answers of random words, length and layout; one is repeated and must go."""
    rng = np.random.default_rng(0)

    def text():
        words = rng.choice(WORDS, size=rng.integers(3, 25))
        parts = np.array_split(words, rng.integers(1, 4))
        return rng.choice(["\n- ", ". ", "! "]).join(" ".join(part) for part in parts)

    rows = []
    for index in range(prompts):
        texts = [text() for _ in range(each)]
        made = [{"text": t, "system": "", "temperature": 1.0} for t in [*texts, texts[0]]]
        rows.append({"id": f"p{index}", "prompt": f"Question {index}?", "answers": made})
    return A.from_rows({"model": "nobody"}, rows)


def hashed_features(texts, show):
    """A bag of hashed words: [N, 24]."""
    features = np.zeros((len(texts), 24), np.float32)
    for row, text in zip(features, texts, strict=True):
        for word in text.split():
            row[hashlib.sha256(word.encode()).digest()[0] % 24] += 1
    config = EncoderConfig(10, 24, 1, 1, 8, 16)
    encoder = Encoder(config, {}, None, "mean", True, 16, "hashed", "0" * 64, "0" * 64)
    return features, encoder


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(R, "read_answers", tiny_answers)
    monkeypatch.setattr(R, "encode_answers", hashed_features)
    monkeypatch.setattr(S, "CONFIG", S.BayesConfig(em_steps=4, pseudo_users=(10.0,)))
    monkeypatch.setattr(S, "TRAIN_CHOICES", 12)
    monkeypatch.setattr(S, "DRAWS", 50)
    monkeypatch.setattr(T, "CONFIG", replace(T.CONFIG, max_calls=14, size=4, refine=1))
    monkeypatch.setattr(P.toy, "STEPS", 5)
    loop = replace(P.CONFIG.loop, epochs=1)
    monkeypatch.setattr(P, "CONFIG", replace(P.CONFIG, loop=loop))
    monkeypatch.setattr(W, "CONFIG", replace(W.CONFIG, vocab_size=40, layers=1))
    monkeypatch.setattr(W, "SFT", replace(W.SFT, loop=replace(W.SFT.loop, epochs=40)))
    monkeypatch.setattr(C, "MOC", replace(C.MOC, steps=2, groups=2, rows=2))
    monkeypatch.setattr(C, "DRAWS", 5)


def everything(value):
    """All leaves of the report."""
    if isinstance(value, dict):
        return [leaf for entry in value.values() for leaf in everything(entry)]
    if isinstance(value, list):
        return [leaf for entry in value for leaf in everything(entry)]
    return [value]


@pytest.mark.slow
def test_a_run_leaves_report_plots_and_choices_and_says_so(tiny, tmp_path, capsys):
    out = tmp_path / "new" / "demo"
    report = demo.run_demo(out, users=45, seed=0)
    assert json.loads((out / "report.json").read_text()) == report
    assert report["demo"]
    assert report["simulated"]
    assert all(v is None or isinstance(v, bool | int | float | str) for v in everything(report))
    page = (out / "report.md").read_text()
    assert "The people are simulated" in page
    assert report["rewards"]["digest"] in page
    for plot in PLOTS:
        assert f"({plot})" in page
        assert (out / plot).read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob(".*"))
    said = capsys.readouterr()
    assert "simulated" in said.out
    assert "misspecified" in said.out
    assert "report.md" in said.out
    assert "fitting learned rewards" in said.err
    for name in ("friendly", "misspecified"):
        for kind in ("named", "learned"):
            found = report["populations"][name][kind]
            assert found["one_model"] <= found["true"]
            assert [point[0] for point in found["curve"]] == list(S.CURVE)
            assert set(found["correlation"]) == {*report["rewards"]["names"], "pooled"}
    pair = report["opposites"]["users"]
    assert report["opposites"]["correlation"] < 0
    assert pair[0]["user"] != pair[1]["user"]
    served = report["portfolio"]
    assert served["members"] == 5
    assert served["true_weights"]["users"] == 45
    assert served["true_weights"]["known"]["below_reference"] == 0
    assert served["inferred"]["users"] == report["users"]["test"]
    assert 0 <= served["inferred"]["probability_best"] <= 1
    persona = report["persona"]
    assert set(persona["accuracy"]) == {"persona", "another", "task", "most_frequent"}
    assert all(
        0 <= one["low"] <= one["mean"] <= one["high"] <= 1 for one in persona["accuracy"].values()
    )
    assert set(persona["by_inferred_weights"]) == {"named", "learned"}
    assert "**The decoder is a toy**" in page
    assert "frozen toy model" in said.out.replace("\n", " ")
    conditioned = report["conditioned"]
    assert conditioned["answers"] == 8
    assert conditioned["best_of"] == 2
    assert set(conditioned["evaluation"]["policies"]) == {
        "MOC", "reference", "best of 2 of the reference"
    }  # fmt: skip
    assert set(conditioned["value"]) == {"own", "shuffled", "ignored", "reference", "best_of"}
    assert "**This decoder is a toy too**" in page
    assert "from corner to corner" in said.out.replace("\n", " ")
    # The choices can be read by `mrm train`, prompts held out are those that test users query.
    choices = files.load(out / "choices.jsonl")
    assert len(choices.users) == 45
    assert len((out / "answers.txt").read_text().splitlines()) == 6
    data = tmp_path / "data"
    assert demo.write_files(data, users=45, seed=0) == [
        "choices.jsonl",
        "answers.jsonl",
        "answers.txt",
    ]
    for name in ("choices.jsonl", "answers.jsonl", "answers.txt"):
        assert (data / name).read_text() == (out / name).read_text()
    answers = [json.loads(line) for line in (data / "answers.jsonl").read_text().splitlines()]
    made = tiny_answers()
    assert [row["answer"] for row in answers] == list(made.texts)
    assert [row["prompt"] for row in answers] == [made.prompts[i] for i in made.prompt]


@pytest.mark.slow
def test_a_seed_decides_everything_and_silence_is_kept(tiny, tmp_path, capsys):
    first, again = (
        demo.run_demo(tmp_path / name, users=45, seed=3, show=False) for name in ("a", "b")
    )
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == ""
    assert first == again
    assert (tmp_path / "a/choices.jsonl").read_bytes() == (
        tmp_path / "b/choices.jsonl"
    ).read_bytes()
    other = draw_people("friendly", 45, 4)
    assert not np.array_equal(draw_people("friendly", 45, 3).weights, other.weights)


@pytest.mark.parametrize("foreign", ["letter.txt", "report.json"])
def test_a_folder_of_another_kind_is_refused_and_left_alone(tiny, tmp_path, foreign):
    (tmp_path / foreign).write_text('{"format": 1}')
    with pytest.raises(InputError, match="not empty and holds no demo"):
        demo.run_demo(tmp_path, users=45, show=False)
    assert [path.name for path in tmp_path.iterdir()] == [foreign]
    assert (tmp_path / foreign).read_text() == '{"format": 1}'


def test_a_file_is_refused(tiny, tmp_path):
    (tmp_path / "demo").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        demo.run_demo(tmp_path / "demo", show=False)
    with pytest.raises(InputError, match="lies below the file"):
        demo.run_demo(tmp_path / "demo" / "below", show=False)


def test_a_demo_is_replaced_and_so_is_an_interrupted_one(tmp_path):
    R.claim(tmp_path / "demo")
    (tmp_path / "demo" / "gap.png").write_text("half")
    R.claim(tmp_path / "demo")


def test_new_files_do_not_stand_beside_an_earlier_report(tmp_path):
    for name, text in (("report.json", '{"demo": true, "users": 600}'), ("report.md", "600 users")):
        (tmp_path / name).write_text(text)
    files = demo.write_files(tmp_path, users=30)
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found.keys() == {"report.json", *files}
    assert json.loads(found["report.json"]) == {"demo": True, "finished": False}


@pytest.mark.parametrize(("users", "seed"), [(10, 0), (60, -1)])
def test_senseless_arguments_are_refused_before_anything_is_written(tiny, tmp_path, users, seed):
    with pytest.raises(InputError, match="expected"):
        demo.run_demo(tmp_path / "demo", users=users, seed=seed)
    assert not (tmp_path / "demo").exists()


def test_prompts_and_users_are_held_out():
    answers = tiny_answers()
    plan = S.design(45, 8, 0)
    assert not set(plan.known) & set(plan.held_out)
    assert sorted([*plan.train, *plan.validation, *plan.test]) == list(range(45))
    assert (len(plan.train), len(plan.held_out)) == (30, 2)
    world = S.simulate(draw_people("friendly", 45, 0), answers, plan, 0)
    for made in (world.fitted, *world.support.values()):
        assert set(answers.prompt[made.chosen].ravel()) <= set(plan.known)
    for made in world.query.values():
        assert set(answers.prompt[made.chosen].ravel()) <= set(plan.held_out)
        np.testing.assert_array_equal(answers.prompt[made.chosen], answers.prompt[made.rejected])


def test_repeated_answers_go_and_traits_are_standardised():
    answers = tiny_answers()
    assert len(answers.texts) == 48
    np.testing.assert_allclose(answers.traits.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(answers.traits.std(0), 1, atol=1e-5)


def test_learned_features_do_not_read_the_traits():
    answers, plan = tiny_answers(), S.design(45, 8, 0)
    encoded, _ = hashed_features(answers.texts, False)
    before = S.learned_features(encoded, answers, plan)
    answers.__dict__["traits"] = np.full((48, 5), np.nan)
    for name, (_, values) in S.learned_features(encoded, answers, plan).items():
        np.testing.assert_array_equal(values, before[name][1])


def test_expected_accuracy_is_that_of_fresh_choices():
    true = np.array([[0.9, 0.2, 0.6]])
    choices = SimulatedChoices(*np.zeros((2, 1, 3), int), true, np.zeros((1, 3), bool))
    assert S.expected_accuracy(true, choices) == pytest.approx((0.9 + 0.8 + 0.6) / 3)
    assert S.expected_accuracy(1 - true, choices) == pytest.approx((0.1 + 0.2 + 0.4) / 3)
    assert S.expected_accuracy(np.full((1, 3), 0.5), choices) == pytest.approx(0.5)


def test_interval_of_the_share_is_that_of_a_ratio_of_means():
    rng = np.random.default_rng(0)
    floor = 0.5 + 0.02 * rng.normal(size=200)
    ceiling = floor + 0.3 + 0.02 * rng.normal(size=200)
    value = floor + 0.6 * (ceiling - floor)
    low, high = S.gap_interval(value, floor, ceiling, 0)
    assert low == pytest.approx(0.6)
    assert high == pytest.approx(0.6)
    noisy = value + 0.05 * rng.normal(size=200)
    low, high = S.gap_interval(noisy, floor, ceiling, 0)
    share = share_of_gap(noisy.mean(), floor.mean(), ceiling.mean())
    assert low < share < high
    assert high - low < 0.1


def test_correlations_say_nothing_of_constants():
    true = np.random.default_rng(0).normal(size=(9, 2))
    found = S.correlations(np.stack([true[:, 0], np.ones(9)], axis=1), true)
    assert found[0] == pytest.approx(1)
    assert found[1] is None


def test_projection_recovers_weights_of_rewards_that_are_the_traits():
    answers, plan = tiny_answers(), S.design(45, 8, 0)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    weights = np.random.default_rng(1).normal(size=(7, 5))
    onto, explained = S.project(answers.traits @ turn, weights, answers, plan)
    np.testing.assert_allclose(weights @ onto.T, weights @ turn.T, atol=1e-5)
    np.testing.assert_allclose(explained, 1, atol=1e-9)


def test_the_shipped_answers_can_be_read():
    answers = A.read_answers()
    assert len(answers.prompts) >= 100
    assert np.bincount(answers.prompt).min() >= 10
    assert np.isfinite(answers.traits).all()


def test_a_damaged_file_is_one_sentence(monkeypatch):
    monkeypatch.setattr(A, "FILE", "nowhere.gz")
    with pytest.raises(InputError, match="install jaxalign again"):
        A.read_answers()


@pytest.mark.slow
def test_the_targets_are_reached_on_the_shipped_answers(tmp_path):
    report = demo.run_demo(tmp_path / "demo")
    friendly = report["populations"]["friendly"]
    assert friendly["named"]["share"] >= 0.70
    assert friendly["learned"]["share"] >= 0.35
    assert friendly["named"]["correlation"]["pooled"] > 0.6
    assert all(target["reached"] for target in report["targets"].values())
    served = report["portfolio"]
    assert served["disliking_share"] > 0.9
    assert served["true_weights"]["known"]["below_reference"] == 0
    assert served["true_weights"]["held_out"]["share_lost"] < 0.25
    assert served["inferred"]["held_out"]["share_lost"] < 0.5
    assert report["persona"]["toy"]["repeats"] == 1.0
    assert report["persona"]["gain"]["task"]["low"] > 0.05
    assert report["persona"]["gain"]["another"]["low"] > 0.05
    conditioned = report["conditioned"]
    moved = conditioned["evaluation"]["policies"]["MOC"]["parts"]["seen"]["movement"]
    assert all(one["low"] > 0.4 for one in moved.values())
    assert all(conditioned["gain"][name]["low"] > 0 for name in ("shuffled", "ignored"))
