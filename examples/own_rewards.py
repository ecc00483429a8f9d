"""Rewards of your own for `jaxalign moc train`: functions from prompts and answers to numbers.

`configs/moc/own_reward.yaml` names the first one by `kind: python` and `function`. A reward returns
one finite number per answer; what is higher is better.
"""

import numpy as np


def questions(prompts: list[str], answers: list[str]) -> list[float]:
    """Return how many questions each answer asks."""
    return [float(answer.count("?")) for answer in answers]


def shared_words(prompts: list[str], answers: list[str]) -> np.ndarray:
    """Return the share of each answer's words that stand in its prompt, [B] in [0, 1]."""
    pairs = zip(prompts, answers, strict=True)
    words = [(set(prompt.lower().split()), answer.lower().split()) for prompt, answer in pairs]
    return np.array([np.mean([word in asked for word in said] or [0.0]) for asked, said in words])


if __name__ == "__main__":
    told = (["Where is the sea?"], ["The sea is there. Do you swim?"])
    print(questions(*told), shared_words(*told).round(2))
