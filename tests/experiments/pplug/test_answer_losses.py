"""Losses of right answers of samples that nearly fill the context of the language model."""

import jax
import numpy as np
from tiny_words import word_tokenizer

from jaxalign.data.histories import Histories, Item, Sample
from jaxalign.experiments.pplug.losses import ScoredSamples, answer_losses
from jaxalign.models import families
from jaxalign.models.gpt2 import GPT2Config
from jaxalign.models.language import LanguageModel
from jaxalign.pplug.config import TextConfig

WORDS = ["</s>", "<unk>", *"abcdefghijkl"]


def test_padding_does_not_leave_the_context():
    """Prompt, soft tokens and answer fit the 32 positions of GPT-2; their buckets do not."""
    config = GPT2Config(len(WORDS), width=8, layers=1, heads=2, hidden=8, positions=32)
    params = jax.jit(families.init, static_argnums=1)(jax.random.key(0), config)
    params = jax.tree.map(lambda leaf: leaf * 8, params)
    tokenizer = word_tokenizer(WORDS)
    model = LanguageModel(config, params, tokenizer, {"eos_token_id": 0}, "tiny", "0" * 64)
    sample = Sample("0", "u", "x", " ".join("abcdefghij"), (0,))
    histories = Histories((sample,), (Item("0", {"text": "a"}),), "text")
    text = TextConfig(prompt_tokens=24, answer_tokens=11)
    prompt = " ".join(["a", "b"] * 8)
    soft = np.full((1, 2, 8), 0.3, np.float32)
    found = answer_losses(ScoredSamples(model, text, histories, [prompt], soft, progress=False))
    ids = tokenizer(prompt + "\n")["input_ids"]
    answer = np.array([*tokenizer(sample.output)["input_ids"], 0])
    embeddings = families.embed(config, params, np.array([[*ids, *answer]], np.int32))
    whole = np.concatenate([soft, np.asarray(embeddings)], axis=1)
    hidden, _ = families.forward(
        config, params, embeddings=whole, lengths=np.array([whole.shape[1]])
    )
    logits = np.asarray(hidden[0] @ params["embed"]["table"].T, np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    own = logprobs[np.arange(len(ids) + 1, len(ids) + 1 + len(answer)), answer]
    np.testing.assert_allclose(found, [-own.mean()], rtol=1e-5)
