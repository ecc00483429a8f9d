"""The demo's third stage: a soft token per user conditions a frozen toy language model.

The persona of a user is made of all choices of the user, each the difference between the answer
that was chosen and the one that was not, in their vectors and measured traits. It is trained on the
training users by `jaxalign.pplug`; the toy then names what each test user likes most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory

import jax
import numpy as np

from jaxalign import pplug
from jaxalign.data.histories import Histories, Item, Sample
from jaxalign.demo import toy
from jaxalign.demo.answers import DemoAnswers
from jaxalign.demo.people import SimulatedChoices
from jaxalign.demo.study import SUPPORT, TRAIN_CHOICES, DemoData, Design, Study, resampled_mean
from jaxalign.models import families
from jaxalign.models.chat import generate_texts
from jaxalign.models.embed import Encoder
from jaxalign.models.language import LanguageModel
from jaxalign.models.sampling import Sampling
from jaxalign.mrm.reduce import fit_projection
from jaxalign.personalize._project import within
from jaxalign.pplug.rows import encoder_config
from jaxalign.rewards.rules import TRAITS
from jaxalign.train.loop import LoopConfig
from jaxalign.train.optimiser import OptimiserConfig

QUESTION = " ".join(toy.PROMPT)
PERSONA = pplug.PersonaConfig(mean=True, centre=True)
"""All items have equal weights: there is one prompt, so that no input encoder is needed. Items are
centred: what the choices of all users have in common tells no user from another."""
TEXT = pplug.TextConfig(query_prefix="", prompt_tokens=8, answer_tokens=2, template="plain")
CONFIG = pplug.PPlugConfig(
    PERSONA,
    TEXT,
    copies=1,
    loop=LoopConfig(epochs=12, batch_size=64, checkpoint_every=10_000),
    optimiser=OptimiserConfig(rate=3e-3, schedule="linear", warmup=0.05, weight_decay=0.1),
    weights="float32",
    compute="float32",
)
WHITEN = 0.5
DIMS = 16
"""Of an item. More directions fit the 400 training users and no others: of 16, 32 and 128, 128 were
the worst for the validation users of three seeds."""
_LEAST = 1e-12  # what lengths are divided by at least
OVER = "over"  # between the numbers of the chosen and the rejected answer in an item


def run_plug(
    encoded: np.ndarray,
    encoder: Encoder,
    answers: DemoAnswers,
    plan: Design,
    data: DemoData,
    studies: Mapping[str, Study],
    seed: int,
) -> dict[str, object]:
    """Train a plug on the training users, and let the toy name what test users like most.

    Args:
        encoded: [N, E] vectors of the answers.
        encoder: The encoder that they are from.
        answers: The answers.
        plan: Who is a test user, and which prompts are known.
        data: Users of linear taste; of the test users only the support choices are read.
        studies: Inferred weights of the test users, for comparison.
        seed: Seed of the toy and of the training.

    Returns:
        The `persona` part of report.json.
    """
    vectors = item_vectors(encoded, answers, plan)
    width = vectors.shape[1]
    encoder = replace(encoder, config=replace(encoder_config(encoder), width=width))
    train = user_histories(data, plan.train, data.fitted)
    test = user_histories(data, plan.test, data.support["test"])
    model, key = toy.make_toy(seed), jax.random.key(seed)
    config = replace(CONFIG, loop=replace(CONFIG.loop, seed=seed))
    with TemporaryDirectory() as folder, pplug.HistoryStore(folder, "demo", width) as store:
        for histories in (train, test):
            store.add(histories.item_texts(), partial(choice_vectors, vectors))

        def fit(histories: Histories) -> pplug.PPlug:
            # Without histories there is no mean to subtract.
            persona = replace(PERSONA, centre=bool(histories.lengths.any()))
            fresh = pplug.init_plug(key, model, encoder, persona, TEXT, histories, store)
            own = replace(config, persona=persona)
            return pplug.train(fresh, histories, own, store=store).plug

        plug = fit(train)
        # As many steps without histories: what is left is the same for all users.
        repeated = np.tile(np.arange(len(train)), 1 + CONFIG.copies)
        alone = fit(_without_histories(train).take(repeated))
        named = name_traits(model, pplug.prefixes(plug, test, store))
        always = name_traits(model, pplug.prefixes(alone, _without_histories(test), store))
    likes = data.people.weights[plan.test].argmax(axis=1)
    frequent = np.bincount(data.people.weights[plan.train].argmax(axis=1)).argmax()
    scores = {
        "persona": named == likes,
        "another": share_of_others(named, likes),
        "task": always == likes,
        "most_frequent": frequent == likes,
    }
    values = {name: np.asarray(score, np.float64) for name, score in scores.items()}
    return {
        "prompt": QUESTION.replace(" :", ":"),
        "toy": {
            "layers": toy.CONFIG.layers,
            "width": toy.CONFIG.width,
            "vocabulary": toy.CONFIG.vocab_size,
            "parameters": toy.count_parameters(model.params),
            "repeats": repeats(model, len(likes)),
        },
        "trained_parameters": toy.count_parameters(plug.trained),
        "choices": {"train": TRAIN_CHOICES, "judge": SUPPORT},
        "epochs": CONFIG.loop.epochs,
        "accuracy": {name: resampled_mean(seed, score) for name, score in values.items()},
        "gain": {
            name: resampled_mean(seed, values["persona"] - values[name])
            for name in ("another", "task")
        },
        "by_inferred_weights": {
            kind: float((study.mean.argmax(axis=1) == likes).mean())
            for kind, study in studies.items()
        },
    }


def item_vectors(encoded: np.ndarray, answers: DemoAnswers, plan: Design) -> np.ndarray:
    """Return what distinguishes each answer from the others to its prompt: [N, at most DIMS + 5].

    Users choose among answers to prompts that they did not choose, so that the subject of a prompt
    says nothing about them. The directions are those of the answers to known prompts. The measured
    traits stand beside them, both parts of equal mean length: what tells users apart has to be
    stated in the items, as ratings have to be in words.
    """
    beyond = within(encoded, answers.prompt)
    fitted = np.isin(answers.prompt, plan.known)
    directions = fit_projection(beyond[fitted], DIMS, WHITEN).apply(beyond)
    traits = within(answers.traits, answers.prompt)
    traits = traits / np.maximum(traits[fitted].std(axis=0), _LEAST)
    parts = [part / _mean_length(part[fitted]) for part in (directions, traits)]
    return np.concatenate(parts, axis=1)


def _mean_length(vectors: np.ndarray) -> float:
    return max(float(np.linalg.norm(vectors, axis=1).mean()), _LEAST)


def user_histories(data: DemoData, users: np.ndarray, choices: SimulatedChoices) -> Histories:
    """Return one question per user, whose history is the choices of the user.

    Args:
        data: The users, whose largest true weight is the right answer.
        users: [U] int users.
        choices: Their choices, [U, P] answers that they chose and rejected.
    """
    pairs = np.stack([choices.chosen, choices.rejected], axis=2)
    distinct, place = np.unique(pairs.reshape(-1, 2), axis=0, return_inverse=True)
    items = tuple(
        Item(f"{chosen}-{rejected}", {"text": f"{chosen} {OVER} {rejected}"})
        for chosen, rejected in distinct
    )
    likes = data.people.weights[users].argmax(axis=1)
    profiles = place.reshape(pairs.shape[:2])
    samples = tuple(
        Sample(f"u{user:04d}", f"u{user:04d}", QUESTION, list(TRAITS)[trait], tuple(map(int, row)))
        for user, trait, row in zip(users, likes, profiles, strict=True)
    )
    return Histories(samples, items, "text")


def choice_vectors(vectors: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Return the difference of the two answers of each choice, of length 1: [n, E].

    Args:
        vectors: [N, E] vectors of the answers.
        texts: Items of `user_histories`.
    """
    pairs = np.array([text.split(f" {OVER} ") for text in texts], int)
    found = vectors[pairs[:, 0]] - vectors[pairs[:, 1]]
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), _LEAST)


def _without_histories(histories: Histories) -> Histories:
    return histories.with_profiles([()] * len(histories))


def name_traits(model: LanguageModel, prefixes: np.ndarray) -> np.ndarray:
    """Return the trait that the toy names behind soft tokens [U, Q, D]: [U] int, -1 for none."""
    found = generate_texts(
        model,
        [QUESTION] * len(prefixes),
        Sampling(max_tokens=1, temperature=0.0),
        jax.random.key(0),
        prefix=prefixes,
        batch_size=len(prefixes),
        progress=False,
    )
    names = list(TRAITS)
    words = [one.text.strip() for one in found]
    return np.array([names.index(word) if word in names else -1 for word in words])


def repeats(model: LanguageModel, rows: int) -> float:
    """Return how often the toy names the trait in the second place, behind different words."""
    number = np.arange(rows, dtype=np.int32)
    traits = number % len(TRAITS)
    words = number // len(TRAITS) % len(toy.VOCABULARY)
    before = np.stack([words, toy.FIRST + traits], axis=1)
    prefix = np.asarray(families.embed(toy.CONFIG, model.params, before))
    return float((name_traits(model, prefix) == traits).mean())


def share_of_others(named: np.ndarray, likes: np.ndarray) -> np.ndarray:
    """Return how often the other users' personas name what a user likes: [U], [U] -> [U]."""
    hits = named[None, :] == likes[:, None]
    return (hits.sum(axis=1) - np.diagonal(hits)) / max(len(named) - 1, 1)
