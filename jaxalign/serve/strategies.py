"""Strategies of the service by name: how a request is answered for its user."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
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
from jaxalign.serve.engines import AnswerEngine, Call
from jaxalign.serve.wire import Reply


class StrategyInputs(NamedTuple):
    """What a strategy works with.

    Attributes:
        engine: draws the answers.
        call: the request, as an engine takes it.
        prompt: its prompt, as rewards read it.
        utility: mean and covariance of the user's weights.
        read: of texts to their base rewards [N, K], as answers to the prompt.
        rule: when an answer other than the plain one is served.
        samples: answers that may be drawn.
        gate: of the base rewards [N, K] of the draws to why the user is left alone on them, None
            where the user is not.
    """

    engine: AnswerEngine
    call: Call
    prompt: str | Chat
    utility: Utility
    read: Callable[[list[str]], Awaitable[np.ndarray]]
    rule: ServingRule
    samples: int
    gate: Callable[[np.ndarray], str | None]


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


async def answer_plainly(inputs: StrategyInputs) -> ServedReply:
    """Serve what the engine draws, all n answers that the request asks for."""
    reply = await inputs.engine.complete(inputs.call)
    text = reply.choices[0].content()
    return ServedReply(reply, PersonalAnswer(text, "plain", ASKED_FOR, 0.0, None, None))


async def answer_best(inputs: StrategyInputs) -> ServedReply:
    """Serve the draw of the largest gain less k standard deviations, however sure it is."""
    return await answer_by_rule(however_sure(inputs))


def however_sure(inputs: StrategyInputs) -> StrategyInputs:
    """Return inputs with which the best draw is served however sure it is to be better."""
    rule = ServingRule(inputs.rule.k, least_probability=0.0)
    return inputs._replace(rule=rule, gate=lambda _: None)


async def answer_by_rule(inputs: StrategyInputs) -> ServedReply:
    """Serve the best draw where it is likely enough to be better, and else the first."""
    reply = await inputs.engine.complete(inputs.call._replace(n=inputs.samples))
    texts = [choice.content() for choice in reply.choices]
    return serve_draw(inputs, reply, await inputs.read(texts))


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
    served = reply.choices[option].model_copy(update={"index": 0})
    kept = reply.model_copy(update={"choices": [served]})
    return ServedReply(kept, answer, values[option : option + 1], why, option)


STRATEGIES: dict[str, Callable[[StrategyInputs], Awaitable[ServedReply]]] = {
    "plain": answer_plainly,
    "best_of": answer_best,
    "auto": answer_by_rule,
}
"""Every strategy of the service by its name."""
