"""Two answers to one prompt: the pair whose comparison is most informative about the user."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.arrays import Sizes, check_numpy
from jaxalign.mrm import information
from jaxalign.personalize.strategies.base import PersonalAnswer
from jaxalign.personalize.utility import Utility
from jaxalign.serve.answering import (
    PreparedRequest,
    call_of,
    explain,
    store_answers,
    strategy_inputs,
    whole_body,
)
from jaxalign.serve.api_errors import ApiError
from jaxalign.serve.service import Service
from jaxalign.serve.store.events import Json
from jaxalign.serve.strategies import ServedReply, however_sure, is_greedy, serve_draw
from jaxalign.serve.wire import Reply, TokenUsage

LEAST_NATS = 0.01
"""Least information at which a comparison pays, such as one of answers that differ clearly."""
_CHOICE = "two answers to choose from"
_information = jax.jit(information)


def most_informative(utility: Utility, values: np.ndarray) -> tuple[tuple[int, int], float]:
    """Return the pair of answers whose comparison is most informative, and its nats.

    Args:
        utility: mean [K] and covariance [K, K] of the user's weights.
        values: [N, K] base rewards of N >= 2 answers.

    Raises:
        InputError: shapes that disagree, NaN or infinity.

    Example:
        >>> import numpy as np
        >>> from jaxalign.personalize import Utility
        >>> from jaxalign.rewards import RewardIds
        >>> from jaxalign.serve.comparing import most_informative
        >>> utility = Utility([0.0, 0.0], np.eye(2), RewardIds(("kind", "brief"), "0" * 64))
        >>> most_informative(utility, np.array([[0.0, 0.0], [0.1, 0.0], [2.0, 0.0]]))[0]
        (0, 2)
    """
    values = check_numpy("values", values, "N K", Sizes(K=(len(utility.mean), "the utility")))
    pairs = list(itertools.combinations(range(len(values)), 2))
    first, second = (np.asarray(side) for side in zip(*pairs, strict=True))
    difference = jnp.asarray(values[first] - values[second], jnp.float32)
    mean, cov = jnp.asarray(utility.mean), jnp.asarray(utility.cov)
    nats = np.asarray(_information(mean, cov, difference))
    best = int(np.argmax(nats))
    return pairs[best], float(nats[best])


async def compare(service: Service, prepared: PreparedRequest) -> Json:
    """Draw answers, and return the two whose comparison is most informative.

    Raises:
        ApiError: no user is named, nothing is stored that a choice could be learned from, the
            temperature is 0, or the rewards cannot be read of the prompt.
    """
    prepared.caller.require_user()
    if not prepared.stored:
        why = "The service stores nothing (--store none)"
        if service.config.store != "none":
            why = "The prompt is a task of the chat application, of which nothing is stored"
        raise ApiError(409, f"{why} that a choice could be learned from.", "nothing_stored")
    call = call_of(prepared, service.config.samples)
    if is_greedy(call):
        raise ApiError(
            400,
            "temperature: found 0, at which all answers are alike; expected more than 0 to draw "
            "answers that can be compared.",
            "invalid_value",
            "temperature",
        )
    reply = await service.engine.complete(call)
    texts = [choice.content() for choice in reply.choices]
    values = await service.read_rewards(prepared.prompt, texts)
    pair, nats = most_informative(prepared.taste.utility, values)
    pays = nats >= LEAST_NATS
    served = None if pays else _served(service, prepared, reply, values)
    numbers = list(pair) if served is None else sorted({*pair, served.number})
    answer = PersonalAnswer(texts[pair[0]], "compare", _CHOICE, 0.0, None, None)
    names = await store_answers(
        service, prepared, [texts[number] for number in numbers],
        answer if served is None else served.answer, values[numbers],
    )  # fmt: skip
    ids = dict(zip(numbers, names, strict=True))
    body = None
    if served is not None:
        about = explain(prepared, served.answer, [ids[served.number]], served.why)
        body = whole_body(prepared, served.reply, about)
    service.telemetry.answers.labels("compare" if served is None else served.answer.strategy).inc()
    usage = reply.usage or TokenUsage()
    service.telemetry.tokens.inc(usage.completion_tokens)
    return {
        "id": prepared.response_id,
        "object": "jaxalign.comparison",
        "model": prepared.request.model,
        "answers": [{"id": ids[number], "text": texts[number]} for number in pair],
        "information": nats,
        "pays": pays,
        "served": body,
        "usage": usage.model_dump(),
    }


def _served(
    service: Service, prepared: PreparedRequest, reply: Reply, values: np.ndarray
) -> ServedReply | None:
    """What a chat would be given of the same draws; None where it would draw others."""
    inputs = strategy_inputs(service, prepared)
    match prepared.strategy:
        case "auto" if inputs.policies is None and inputs.persona is None:
            return serve_draw(inputs, reply, values)
        case "best_of":
            return serve_draw(however_sure(inputs), reply, values)
    return None
