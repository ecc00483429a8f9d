"""Named rewards as one function: rules, classifiers with the real heads, and faults by name."""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_lms
import torch
import transformers
from tiny_bert import WORDS

from jaxalign.errors import InputError
from jaxalign.models.classifier import load_classifier, read_config
from jaxalign.models.weights.classifier import layout
from jaxalign.models.weights.load import abstract_params
from jaxalign.rewards import registry
from jaxalign.rewards.registry import rule_rewards
from jaxalign.rewards.rules import TRAITS
from jaxalign.rewards.vector import (
    TextReward,
    TokenReward,
    check_rewards,
    classifier_reward,
    compute_rewards,
    concatenate_rewards,
)

PROMPTS = ["the end", "red green\n\nblue", "a"]
ANSWERS = ["of a thing.", "an other hat and the rest of it!", "b c"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def helpful(tmp_path_factory):
    """GPT-2 with one logit and no padding token, as the published reward models have it."""
    folder = tmp_path_factory.mktemp("gpt2")
    model = tiny_lms.hf_model("gpt2", labels=1, num_hidden_layers=2)
    model.config.pad_token_id = None
    model.save_pretrained(folder)
    tiny_lms.tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return str(folder), model


@pytest.fixture(scope="module")
def humor(tmp_path_factory):
    """DistilBERT with two logits, of which the second counts."""
    folder = tmp_path_factory.mktemp("distilbert")
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "max_position_embeddings": 32, "num_labels": 2}
    config = transformers.DistilBertConfig(**sizes, dim=32, n_layers=2, n_heads=4, hidden_dim=48)
    config.id2label = {0: "NO_HUMOR", 1: "HUMOR"}
    model = transformers.DistilBertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return str(folder), model


# What of the published config.json files decides how they are read.
PUBLISHED = {
    "Ray2333/gpt2-large-helpful-reward_model": {
        "architectures": ["GPT2ForSequenceClassification"], "activation_function": "gelu_new",
        "bos_token_id": 50256, "eos_token_id": 50256, "id2label": {"0": "LABEL_0"},
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 1280,
        "n_head": 20, "n_inner": None, "n_layer": 36, "n_positions": 1024,
        "reorder_and_upcast_attn": False, "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True, "summary_type": "cls_index", "vocab_size": 50257,
    },
    "mohameddhiab/humor-no-humor": {
        "architectures": ["DistilBertForSequenceClassification"], "activation": "gelu",
        "dim": 768, "hidden_dim": 3072, "id2label": {"0": "NO_HUMOR", "1": "HUMOR"},
        "max_position_embeddings": 512, "model_type": "distilbert", "n_heads": 12, "n_layers": 6,
        "pad_token_id": 0, "problem_type": "single_label_classification",
        "sinusoidal_pos_embds": False, "vocab_size": 30522,
    },
}  # fmt: skip


def test_the_published_models_fit_the_loader():
    """As many parameters as transformers gives a model of the same config."""
    for settings in PUBLISHED.values():
        config, labels = read_config(settings, "bfloat16")
        shapes = abstract_params(layout(config, len(labels)), "bfloat16")
        found = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
        kind = settings["architectures"][0].replace("ForSequenceClassification", "")
        kinds = {"GPT2": "GPT2Config", "DistilBert": "DistilBertConfig"}
        theirs = getattr(transformers, kinds[kind])(**settings)
        with torch.device("meta"):
            model = getattr(transformers, settings["architectures"][0])(theirs)
        assert found == sum(parameter.numel() for parameter in model.parameters())
        assert labels == tuple(settings["id2label"].values())


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits[0].numpy()


def theirs(folder, model, label, *columns):
    """One row at a time, as the authors score."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = zip(*columns, strict=True)
    return np.array([logits(model, tokenizer(*row, return_tensors="pt"))[label] for row in rows])


def agree(found, expected):
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_a_reward_model_reads_prompt_and_answer_as_the_tokenizer_joins_them(helpful):
    folder, model = helpful
    found = compute_rewards(classifier_reward(folder, "helpful"), PROMPTS, ANSWERS)
    agree(found, theirs(folder, model, 0, PROMPTS, ANSWERS)[:, None])
    assert np.ptp(found) > 1e-3
    swapped = compute_rewards(classifier_reward(folder, "helpful"), PROMPTS[::-1], ANSWERS)
    assert np.abs(swapped - found).max() > 1e-3


def test_a_classifier_of_the_answer_alone(humor):
    folder, model = humor
    reward = classifier_reward(folder, "humor", label=1, pair=False)
    found = compute_rewards(reward, PROMPTS, ANSWERS)
    agree(found, theirs(folder, model, 1, ANSWERS)[:, None])
    np.testing.assert_array_equal(found, compute_rewards(reward, ["a"] * 3, ANSWERS))
    other = compute_rewards(
        classifier_reward(folder, "humor", label=0, pair=False), PROMPTS, ANSWERS
    )
    assert np.abs(other - found).max() > 1e-3


def test_a_template_and_a_part_of_the_prompt(helpful):
    folder, model = helpful
    posts = ["a post", "b ### Response: c", "d"]
    prompts = [f"### Input: {post} ### Response: " for post in posts]
    reward = classifier_reward(
        folder,
        "summary",
        template="{answer} {{x}} {prompt}{answer}",
        between=("### Input:", "### Response:"),
    )
    written = [f"{a} {{{{x}}}} {p}{a}" for p, a in zip(posts, ANSWERS, strict=True)]
    found = compute_rewards(reward, prompts, ANSWERS)
    agree(found, theirs(folder, model, 0, written)[:, None])
    braces = ["{prompt}", *ANSWERS[1:]]  # an answer is not a template
    again = compute_rewards(reward, prompts, braces)
    written[0] = "{prompt} {{x}} a post{prompt}"
    agree(again, theirs(folder, model, 0, written)[:, None])
    match = r"summary raised InputError: a prompt has nothing between .*\(row 1, prompt .no marks"
    with pytest.raises(InputError, match=match):
        compute_rewards(reward, [prompts[0], "no marks", prompts[2]], ANSWERS)


def test_columns_stand_side_by_side(helpful, humor):
    one = classifier_reward(helpful[0], "helpful")
    two = rule_rewards(["positivity", "brevity"])
    three = classifier_reward(load_classifier(humor[0]), "humor", 1, pair=False)
    both = concatenate_rewards(one, two, three)
    assert both.names == ("helpful", "positivity", "brevity", "humor")
    parts = [compute_rewards(reward, PROMPTS, ANSWERS) for reward in (one, two, three)]
    np.testing.assert_array_equal(
        compute_rewards(both, PROMPTS, ANSWERS), np.concatenate(parts, axis=1)
    )
    expected = [[TRAITS["positivity"](text), TRAITS["brevity"](text)] for text in ANSWERS]
    np.testing.assert_allclose(parts[1], expected, rtol=1e-6)
    assert all(reward.id in both.id for reward in (one, two, three))
    assert compute_rewards(both, [], []).shape == (0, 4)
    assert concatenate_rewards(one) is one


def test_an_id_is_of_what_is_measured(helpful, humor, tmp_path):
    copy = shutil.copytree(humor[0], tmp_path / "elsewhere")
    ids = [
        classifier_reward(humor[0], "humor", 1, pair=False).id,
        classifier_reward(humor[0], "humor", 0, pair=False).id,
        classifier_reward(humor[0], "humor", 1).id,
        classifier_reward(humor[0], "humor", 1, template="{answer}").id,
        classifier_reward(humor[0], "humor", 1, pair=False, dtype="bfloat16").id,
        classifier_reward(helpful[0], "humor").id,
        rule_rewards(["brevity"]).id,
        rule_rewards(["warmth"]).id,
    ]
    assert len(set(ids)) == len(ids)
    assert classifier_reward(str(copy), "fun", 1, pair=False).id == ids[0]


def test_wrong_classifiers_and_names_are_refused(humor):
    with pytest.raises(
        InputError, match=r"no logit 2 for humor; choose among 0 \(NO_HUMOR\), 1 \(HUMOR\)"
    ):
        classifier_reward(humor[0], "humor", 2)
    with pytest.raises(InputError, match=r"has no \{answer\}"):
        classifier_reward(humor[0], "humor", template="{prompt}")
    with pytest.raises(InputError, match="no reward is registered as 'wit'; choose among brevity"):
        rule_rewards(["brevity", "wit"])
    for names, match in (((), "one or more"), (("a", "a"), "no two alike"), (("a b",), "spaces")):
        with pytest.raises(InputError, match=match):
            TextReward(names, len, "x")
    with pytest.raises(InputError, match="no two alike"):
        concatenate_rewards(rule_rewards(["brevity"]), rule_rewards(["brevity"]))


def of(function, names=("good", "fine")):
    return TextReward(names, function, "test")


def refused(match, reward, answers=("x", "bad", "y"), **more):
    prompts = [f"ask {answer}" for answer in answers]
    with pytest.raises(InputError, match=match) as caught:
        compute_rewards(reward, prompts, list(answers), **more)
    return caught.value


def lengths(_, answers):
    return np.array([[len(text), 1.0] for text in answers])


def raising(_, answers):
    if "bad" in answers:
        raise KeyError("no such word")
    return lengths(_, answers)


def spoiled(value):
    def function(_, answers):
        table = lengths(_, answers)
        table[[text == "bad" for text in answers], 1] = value
        return table

    return function


WHERE = r'\(row 41, prompt "ask bad", answer "bad"\)'


def test_a_reward_that_raises_is_named_with_its_row():
    error = refused(
        f"good, fine raised KeyError: 'no such word' {WHERE}", of(raising), first_row=40
    )
    assert isinstance(error.__cause__, KeyError)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named_with_its_row(value):
    refused(
        f"the reward fine gave {value} where a finite .* {WHERE}", of(spoiled(value)), first_row=40
    )


def test_a_number_too_large_for_float32_is_not_finite():
    refused("the reward fine gave inf", of(spoiled(1e300)))


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda _, answers: [lengths(_, [a])[0] for a in answers if a != "bad"],
         r"gave shape \(0,\) where \(1, 2\) was expected " + WHERE),
        (lambda _, answers: lengths(_, answers)[:, :1], r"gave shape \(1, 1\).*row 40, prompt"),
        (lambda _, answers: lengths(_, answers * 2)[: len(answers) + len(answers) // 2],
         r"gave shape \(4, 2\) where \(3, 2\) was expected \(rows 40 to 42\)"),
        (lambda _, answers: [["a", "b"]] * len(answers), "gave no table of numbers .*row 40"),
        (lambda _, answers: [[1, 2]] * (len(answers) - 1) + [[1]], "gave no table|gave shape"),
    ],
    ids=["left out", "one column", "one more", "text", "ragged"],
)  # fmt: skip
def test_a_wrong_shape_is_named(function, match):
    refused(match, of(function), first_row=40)


def test_within_several_the_one_at_fault_is_named():
    good = of(lengths, ("long", "one"))
    refused(
        f"the reward good, fine raised .*{WHERE}",
        concatenate_rewards(good, of(raising)),
        first_row=40,
    )
    refused("the reward fine gave nan", concatenate_rewards(good, of(spoiled(np.nan))))
    assert compute_rewards(concatenate_rewards(good, of(raising)), ["a"], ["b"]).tolist() == [
        [1, 1, 1, 1]
    ]


def test_long_texts_are_shown_short():
    error = refused("raised", of(raising, ("good",)), answers=("bad",))
    assert 'prompt "ask bad"' in str(error)
    with pytest.raises(InputError) as caught:
        compute_rewards(of(raising), ["p" * 500, "é\n" * 300], ["a" * 500, "bad"])
    assert len(str(caught.value)) < 300
    with pytest.raises(InputError, match="2 prompts for 1 answers"):
        compute_rewards(of(lengths), ["a", "b"], ["c"])


def test_one_reward_may_give_a_vector():
    found = compute_rewards(
        of(lambda _, answers: [len(a) for a in answers], ("long",)), ["p"] * 2, ["a", "bc"]
    )
    assert found.tolist() == [[1], [2]]
    assert found.dtype == np.float32


def test_a_reward_that_leaves_the_process_is_named_with_its_row():
    def function(prompts, answers):
        if "b" in answers:
            raise SystemExit(1)
        return [0.0] * len(answers)

    with pytest.raises(InputError, match=r"the reward r raised SystemExit: 1 \(row 7, "):
        compute_rewards(TextReward(("r",), function, "r"), ["p", "q"], ["a", "b"], first_row=6)


def test_a_reward_may_change_the_lists_that_it_is_given():
    def function(prompts, answers):
        found = [float(len(answer)) for answer in answers]
        answers.clear()
        prompts.clear()
        return found

    prompts, answers = ["p", "q"], ["a", "bb"]
    both = concatenate_rewards(*(TextReward((name,), function, name) for name in "rs"))
    assert compute_rewards(both, prompts, answers).tolist() == [[1, 1], [2, 2]]
    assert (prompts, answers) == (["p", "q"], ["a", "bb"])


def test_registered_rewards_are_refused_by_their_own_names(monkeypatch):
    def short(prompts, answers):
        return [0.0]

    monkeypatch.setitem(registry._REGISTERED, "short", short)
    with pytest.raises(InputError, match=r"the reward short gave shape \(1,\) where \(2, 1\)"):
        compute_rewards(rule_rewards(["brevity", "short"]), ["p", "q"], ["a", "b"])


def test_an_interruption_is_no_fault_of_the_reward():
    def interrupted(_, __):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_rewards(of(interrupted), ["a"], ["b"])


def test_rewards_from_tokens_are_looked_at_alike():
    def share(prompts, prompt_lengths, answers, lengths):
        del prompts, prompt_lengths
        mask = jnp.arange(answers.shape[1])[None, :] < lengths[:, None]
        return jnp.sum((answers == 3) & mask, axis=1, keepdims=True) / lengths[:, None]

    reward = TokenReward(("threes",), share, "test")
    table = np.array([[3, 3, 1], [3, 1, 3]], np.int32)
    found = jax.jit(reward.function)(table, np.array([1, 1]), table, np.array([2, 0], np.int32))
    with pytest.raises(InputError, match=r'threes gave nan .*row 8, prompt "q", answer "b"'):
        check_rewards(reward, found, ["p", "q"], ["a", "b"], 7)
    np.testing.assert_array_equal(check_rewards(reward, found[:1], ["p"], ["a"]), [[1.0]])
    with pytest.raises(InputError, match=re.escape("gave shape (2, 1) where (3, 1)")):
        check_rewards(reward, found, ["p"] * 3, ["a"] * 3)
    assert {reward: 1}[reward] == 1  # static in a compiled program
