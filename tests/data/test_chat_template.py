"""Chat templates: one that is chosen by name, one that refuses, and those that open a thought."""

import json
from types import SimpleNamespace

import pytest
import tiny_lms

from jaxalign.data.chat_template import answer_turn, choose_template, render_chat
from jaxalign.data.completions import CompletionConfig, load_completions
from jaxalign.errors import InputError
from jaxalign.models.chat import prompt_ids

# Short templates that behave as those of the families do.
R1 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<U>{{ m['content'] }}{% else %}"
    "<A>{{ m['content'].split('</think>')[-1] }}<E>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<A><think>\n{% endif %}"
)
QWQ = (
    "{% for m in messages %}{% set text = m['content'] %}{% if m['role'] == 'assistant' %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + text + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# Qwen3: the last turn shows its thought, earlier ones do not.
QWEN3 = (
    "{% for m in messages %}{% set text = m['content'] %}{% set thought = '' %}"
    "{% if m['reasoning_content'] is string %}{% set thought = m['reasoning_content'] %}"
    "{% elif '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ text + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + OPEN }}{% endif %}"
)
QWEN3_THINKING, QWEN3_HYBRID = (QWEN3.replace("OPEN", f"'{s}'") for s in ("<think>\n", ""))
NO_THOUGHT = R1.replace("<A><think>\n", "<A><think>\n\n</think>\n\n")
WITHOUT_NEWLINE = R1.replace("<A><think>\n", "<A><think>")
REFUSES = "{{ raise_exception('a system message is required') }}"
BREAKS = "{{ messages[0]['content'] + 1 }}"

THOUGHT = "<think>\nbecause\n</think>\n\nyo"
EMPTY, BECAUSE = "\n</think>\n\nyo", "because\n</think>\n\nyo"


@pytest.fixture
def tokenizer():
    return tiny_lms.tokenizer()


def talk(*contents, **more):
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return [*turns[:-1], turns[-1] | more]


def learned(tokenizer, tmp_path, messages, turns="last"):
    """The prompt and the learned text of each row that a conversation makes."""
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")
    found = load_completions(path, tokenizer, CompletionConfig(turns=turns))
    rows = []
    for start, end in zip(found.sequences.starts, found.sequences.starts[1:], strict=False):
        ids, marks = found.sequences.tokens[start:end], found.learned[start:end]
        rows.append((ids[: marks.argmax()].tolist(), tokenizer.decode(ids[marks])))
    return rows


@pytest.mark.parametrize(
    ("template", "answer", "expected"),
    [
        (R1, "yo", EMPTY + "<E>"),
        (R1, THOUGHT, BECAUSE + "<E>"),
        (R1, "<b>yo", "\n</think>\n\n<b>yo<E>"),
        (QWQ, "yo", EMPTY + "<|im_end|>\n"),
        (QWQ, THOUGHT, BECAUSE + "<|im_end|>\n"),
        (QWEN3_THINKING, "yo", EMPTY + "<|im_end|>\n"),
        (QWEN3_THINKING, THOUGHT, BECAUSE + "<|im_end|>\n"),
        (QWEN3_HYBRID, "yo", "<think>\n" + EMPTY + "<|im_end|>\n"),
        (NO_THOUGHT, THOUGHT, "yo<E>"),
        (WITHOUT_NEWLINE, THOUGHT, "\n" + BECAUSE + "<E>"),
    ],
)
def test_the_answer_is_learned_behind_the_prompt_of_generation(
    tokenizer, tmp_path, template, answer, expected
):
    tokenizer.chat_template = template
    ((prompt, text),) = learned(tokenizer, tmp_path, talk("hi", answer))
    assert text == expected
    model = SimpleNamespace(tokenizer=tokenizer, config=SimpleNamespace(positions=999), name="tiny")
    assert prompt == prompt_ids(model, talk("hi"))


def test_a_thought_may_stand_in_a_field_of_its_own(tokenizer, tmp_path):
    messages = talk("hi", "yo", reasoning_content="because")
    for template, end in ((R1, "<E>"), (QWEN3_THINKING, "<|im_end|>\n")):
        tokenizer.chat_template = template
        ((_, text),) = learned(tokenizer, tmp_path, messages)
        assert text == BECAUSE + end


def test_every_turn_of_a_model_that_thinks_makes_a_row(tokenizer, tmp_path):
    tokenizer.chat_template = R1
    rows = learned(tokenizer, tmp_path, talk("hi", THOUGHT, "and?", "no"), "all")
    assert [text for _, text in rows] == [BECAUSE + "<E>", "\n</think>\n\nno<E>"]
    prompts = [tokenizer.decode(prompt) for prompt, _ in rows]
    assert prompts == ["<U>hi<A><think>\n", "<U>hi<A>\n\nyo<E><U>and?<A><think>\n"]


def test_a_template_is_chosen_by_name(tokenizer):
    tokenizer.chat_template = {"rag": "rag{{ messages[0]['content'] }}", "tool_use": "tools"}
    with pytest.raises(
        InputError, match="line 3: the tokenizer has the chat templates rag, tool_use and none"
    ):
        render_chat(tokenizer, talk("hi"), "a.jsonl, line 3")
    with pytest.raises(InputError, match=r"found 'rga', expected .*\(rag, tool_use\)"):
        choose_template(tokenizer, "rga")
    for _ in range(2):
        assert choose_template(tokenizer, "rag")
        assert render_chat(tokenizer, talk("hi"), "the prompt") == "raghi"
    assert choose_template(tokenizer, "tool_use")
    assert render_chat(tokenizer, talk("hi"), "the prompt") == "tools"


@pytest.mark.parametrize(
    ("template", "reason"),
    [(REFUSES, "a system message is required"), (BREAKS, "can only concatenate str")],
)
def test_a_template_that_refuses_is_one_sentence(tokenizer, template, reason):
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=rf"line 1: the chat template refuses .*{reason}"):
        render_chat(tokenizer, talk("hi"), "a.jsonl, line 1")


def test_turns_that_are_written_otherwise_once_answered_are_refused(tokenizer):
    tokenizer.chat_template = (
        "{{ 'x' if add_generation_prompt else 'y' + messages[-1]['content'] }}"
    )
    with pytest.raises(InputError, match="line 1: the chat template writes these turns otherwise"):
        answer_turn(tokenizer, talk("hi", "yo"), "a.jsonl, line 1")
