"""Completions from a file: which prompts they complete, and the token that ends them."""

import pytest
import tiny_lms

from jaxalign.errors import InputError
from jaxalign.experiments.moc.scored import PromptCompletion, completions_of, score_completions
from jaxalign.moc import init_policy
from jaxalign.moc.config import MocConfig
from jaxalign.models.language import load_language_model
from jaxalign.rewards.spec import RewardSpec, build_rewards

NAMES = ("brevity", "simplicity")
CHAT = ({"role": "user", "content": "the inn"},)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_language_model(str(tiny_lms.write(tmp_path_factory.mktemp("lm"), "llama")))


def scored(model, rows, prompts):
    import jax

    policy = init_policy(jax.random.key(0), model, NAMES, MocConfig(answer_tokens=6))
    rewards = build_rewards([RewardSpec(name) for name in NAMES])
    return score_completions(rows, policy, rewards, prompts, MocConfig(answer_tokens=6))


@pytest.mark.parametrize(
    ("prompt", "end"), [("the inn", tiny_lms.SPECIAL[0]), (CHAT, "<|end|>")], ids=["text", "chat"]
)
def test_completions_end_as_the_model_ends_them(model, prompt, end):
    """Not with the stop id of the smallest number: here both are stops, in two orders."""
    added = model.tokenizer.get_added_vocab()
    end = added.get(end, model.tokenizer.convert_tokens_to_ids(end))
    other = {*model.tokenizer.all_special_ids, *added.values()} - {end}
    rows = [PromptCompletion("the inn", "an"), PromptCompletion("the inn", "an<|end|>the thing")]
    found = scored(model, rows, [prompt])
    for ids in found.ids:
        assert ids[-1] == end
        assert not {*ids[:-1]} & {end, *other}
    assert found.ids[0] == found.ids[1]


def test_a_dialogue_completes_the_chat_that_a_template_makes_of_it(model):
    rows = [
        PromptCompletion("\n\nHuman: the inn\n\nAssistant:", "an"),
        PromptCompletion("<pref_brevity> 1 the inn", "a"),
        PromptCompletion("elsewhere", "a"),
    ]
    lines = []
    found = completions_of(rows, [CHAT], NAMES, lines.append)
    assert [row.prompt for row in found] == ["the inn", "the inn"]
    assert lines == ["warm_start.data: 1 of 3 rows complete no prompt that the run trains on"]
    with pytest.raises(InputError, match="none of 1 row completes"):
        completions_of(rows[2:], [CHAT], NAMES, lines.append)


def test_completions_without_a_token_are_refused(model):
    rows = [PromptCompletion("the inn", "<|end|>an")]
    with pytest.raises(InputError, match="found 1 completion, all of which end at their first"):
        scored(model, rows, [CHAT])
