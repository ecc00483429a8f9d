"""Strategies of the service by name: how a request is answered for its user."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from jaxalign.models.chat import Chat
from jaxalign.mrm.gains import expected_gains
from jaxalign.personalize.strategies.base import (
    ASKED_FOR,
    PersonalAnswer,
    ServingRule,
    chosen_answer,
)
from jaxalign.personalize.utility import Utility
from jaxalign.serve.api_errors import ApiError
from jaxalign.serve.cancelling import cancelling
from jaxalign.serve.engines import AnswerEngine, Call
from jaxalign.serve.offered import OfferedPolicies
from jaxalign.serve.personas import Persona
from jaxalign.serve.wire import Reply, sum_usage


class StrategyInputs(NamedTuple):
    """What a strategy works with.

    Attributes:
        strategy: name of the strategy.
        engine: draws the answers.
        call: the request, as an engine takes it.
        prompt: its prompt, as rewards read it.
        utility: mean and covariance of the user's weights.
        read: of texts to their base rewards [N, K], as answers to the prompt; an `ApiError` where
            they cannot be read.
        rule: when an answer other than the plain one is served.
        samples: answers that may be drawn.
        gate: of the base rewards [N, K] of the draws to why the user is left alone on them, None
            where the user is not.
        policies: that may answer in place of the engine's own model; None for none.
        persona: of the user, where it may be used; None where not.
    """

    strategy: str
    engine: AnswerEngine
    call: Call
    prompt: str | Chat
    utility: Utility
    read: Callable[[list[str]], Awaitable[np.ndarray]]
    rule: ServingRule
    samples: int
    gate: Callable[[np.ndarray], str | None]
    policies: OfferedPolicies | None = None
    persona: Persona | None = None


@dataclass(frozen=True, eq=False)
class ServedReply:
    """An engine's reply that holds the answers to serve alone.

    Attributes:
        reply: its choices are those that are served.
        answer: the first of them, with the reason.
        features: [N, K] base rewards of the choices; None where they are not computed yet.
        why: why the plain answer was served whatever the gains, None where it was not.
        number: of the first choice among all that were drawn.
    """

    reply: Reply
    answer: PersonalAnswer
    features: np.ndarray | None = None
    why: str | None = None
    number: int = 0


def choose_plain(inputs: StrategyInputs) -> tuple[Call, PersonalAnswer]:
    """Return the call to what the request names: the engine's own model, or a policy."""
    if inputs.policies is not None and inputs.call.policy is not None:
        _, answer = inputs.policies.choose(inputs.utility, inputs.rule, inputs.call.policy)
        return inputs.call, answer
    return inputs.call, PersonalAnswer("", "plain", ASKED_FOR, 0.0, None, None)


def choose_policy(inputs: StrategyInputs) -> tuple[Call, PersonalAnswer]:
    """Return the call to the policy of the largest gain less k standard deviations, however sure it
    is.
    """
    if inputs.policies is None:
        return choose_plain(inputs)
    policy, answer = inputs.policies.choose(inputs.utility, however_sure(inputs).rule)
    return inputs.call._replace(policy=policy), answer


def choose_persona(inputs: StrategyInputs) -> tuple[Call, PersonalAnswer]:
    """Return the call with the soft tokens of the user's persona."""
    if inputs.persona is None:
        return choose_plain(inputs)
    answer = PersonalAnswer("", "persona", inputs.persona.words(), 0.0, None, None)
    return inputs.call._replace(soft=inputs.persona.soft), answer


CHOOSE_FIRST: dict[str, Callable[[StrategyInputs], tuple[Call, PersonalAnswer]]] = {
    "plain": choose_plain,
    "member": choose_policy,
    "conditioned": choose_policy,
    "persona": choose_persona,
}
"""Strategies that choose what answers before it is drawn, so that the answer can be streamed."""


async def answer_first_choice(inputs: StrategyInputs) -> ServedReply:
    """Serve what the call of the user or of the request draws, all n answers of the request."""
    call, answer = CHOOSE_FIRST[inputs.strategy](inputs)
    reply = await inputs.engine.complete(call)
    return ServedReply(reply, replace(answer, text=reply.choices[0].content()))


async def answer_best(inputs: StrategyInputs) -> ServedReply:
    """Serve the draw of the largest gain less k standard deviations, however sure it is."""
    return await answer_by_rule(however_sure(inputs))


def however_sure(inputs: StrategyInputs) -> StrategyInputs:
    """Return inputs with which the best option is served however sure it is to be better."""
    rule = replace(inputs.rule, least_probability=0.0)
    return inputs._replace(rule=rule, gate=lambda _: None)


async def answer_by_rule(inputs: StrategyInputs) -> ServedReply:
    """Serve the best draw where it is likely enough to be better, and else the first; that one
    too where the rewards cannot be read of the prompt.
    """
    reply = await inputs.engine.complete(inputs.call._replace(n=inputs.samples))
    texts = [choice.content() for choice in reply.choices]
    try:
        values = await inputs.read(texts)
    except ApiError as error:
        answer = PersonalAnswer(texts[0], "plain", ASKED_FOR, 0.0, None, None)
        why = error.message[:1].lower() + error.message[1:].rstrip(".")
        return ServedReply(_draw(reply, 0), answer, why=why)
    return serve_draw(inputs, reply, values)


def is_greedy(call: Call) -> bool:
    """Return whether all draws of a call are alike; vLLM refuses to draw more than one of them."""
    return call.body.get("temperature") == 0


def _draw(reply: Reply, number: int) -> Reply:
    """The reply with one of its draws alone."""
    served = reply.choices[number].model_copy(update={"index": 0})
    return reply.model_copy(update={"choices": [served]})


def serve_draw(inputs: StrategyInputs, reply: Reply, values: np.ndarray) -> ServedReply:
    """Return the draw to serve by the rule and the gate.

    Args:
        inputs: of the request.
        reply: N draws, the first of which is the plain answer.
        values: [N, K] their base rewards.
    """
    texts = [choice.content() for choice in reply.choices]
    gains = expected_gains(inputs.utility.mean, inputs.utility.cov, values)
    why = inputs.gate(values)
    option = 0 if why else inputs.rule.choose(gains)
    words = [f"answer {place} of {len(texts)}" for place in range(1, len(texts) + 1)]
    answer = chosen_answer(texts[option], "best_of", words, option, gains)
    return ServedReply(_draw(reply, option), answer, values[option : option + 1], why, option)


async def answer_auto(inputs: StrategyInputs) -> ServedReply:
    """Serve what is expected to gain most for the user; where nothing is, the user's persona.

    The persona is drawn at the same time as the others.
    """
    if inputs.persona is None:
        return await answer_largest_gain(inputs)
    call, answer = choose_persona(inputs)
    draws = asyncio.ensure_future(answer_largest_gain(inputs))
    one = asyncio.ensure_future(inputs.engine.complete(call))
    with cancelling(draws, one):
        served, reply = await asyncio.gather(draws, one)
    usage = sum_usage([served.reply.usage, reply.usage])
    if served.answer.strategy != "plain":
        return replace(served, reply=served.reply.model_copy(update={"usage": usage}))
    answer = replace(answer, text=reply.choices[0].content())
    return ServedReply(reply.model_copy(update={"usage": usage}), answer)


async def answer_largest_gain(inputs: StrategyInputs) -> ServedReply:
    """Serve the best draw or the best policy, whichever gains more for the user by the rule.

    A policy that is not likely enough to be better is not drawn from. Both are drawn at once. At
    temperature 0 one answer is drawn, so that only policies can gain.
    """
    if is_greedy(inputs.call):
        inputs = inputs._replace(samples=1)
    if inputs.policies is None:
        return await answer_by_rule(inputs)
    policy, expected = inputs.policies.choose(inputs.utility, inputs.rule)
    by_rule = answer_by_rule(inputs)
    if policy is None:
        served = await by_rule
        if served.answer.strategy == "plain" and expected.held_back:
            return replace(served, answer=replace(served.answer, held_back=True))
        return served
    draws = asyncio.ensure_future(by_rule)
    one = asyncio.ensure_future(inputs.engine.complete(inputs.call._replace(policy=policy)))
    with cancelling(draws, one):
        served, reply = await asyncio.gather(draws, one)
    usage = sum_usage([served.reply.usage, reply.usage])
    if inputs.rule.cautious_gain(expected) <= inputs.rule.cautious_gain(served.answer):
        kept = served.reply.model_copy(update={"usage": usage})
        return replace(served, reply=kept)
    answer = replace(expected, text=reply.choices[0].content())
    return ServedReply(reply.model_copy(update={"usage": usage}), answer)


STRATEGIES: dict[str, Callable[[StrategyInputs], Awaitable[ServedReply]]] = {
    **dict.fromkeys(CHOOSE_FIRST, answer_first_choice),
    "best_of": answer_best,
    "auto": answer_auto,
}
"""Every strategy of the service by its name."""
