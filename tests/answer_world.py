"""Users on named rewards, and what answers them: models in memory, saved without any training."""

import json
from types import SimpleNamespace

import numpy as np
from few_states import posterior_users

from jaxalign import mrm
from jaxalign.mrm.adaptation import Gate
from jaxalign.mrm.reduce import standardise
from jaxalign.rewards import fit_scale, rule_rewards

NAMES = ("brevity", "warmth")
TEXTS = {
    "How was your day?": (
        "It was a day.",
        "Fine.",
        "My dear friend, thank you so much for asking, I love that you care, it was wonderful!",
    ),
    "Tea?": (
        "There is some tea in the kitchen over there.",
        "Yes.",
        "Oh, I would love some, dear!",
    ),
}
USERS = {"brief": (3.0, 0.0), "warm": (-1.0, 3.0), "unsure": (0.0, 0.01)}


def scale_of(names=NAMES):
    texts = [text for some in TEXTS.values() for text in some]
    raw = rule_rewards(names).function([""] * len(texts), texts)
    return fit_scale(raw, names, None)


def save_run(folder, scale, variance=0.04, users=USERS, gate=None):
    """A run of `mrm train` on named rewards with its adapted users; everybody likes brevity."""
    size = len(scale.names)
    fitted = {"mean": np.eye(1, size)[0], "cov": 4 * np.eye(size)}
    candidate = {"strength": 1.0, "temperature": 1.0, "adapt": True}
    model = mrm.UserModel(
        mrm.make_method("bayes"), fitted, candidate, np.zeros(size),
        standardise(scale), gate=gate or Gate(), reference=np.eye(size, dtype=np.float32),
    )  # fmt: skip
    digest = mrm.save(folder, model)
    cov = np.array([(100 if user == "unsure" else 1) * variance * np.eye(size) for user in users])
    mean = np.array([(*weights, 0.0)[:size] for weights in users.values()])
    store = posterior_users(digest, 4 * np.eye(size), users, mean, cov, scale.ids)
    store.save(folder / "users.sqlite")
    return folder


def build(root):
    rows = [{"prompt": p, "answer": text} for p, texts in TEXTS.items() for text in texts]
    candidates = root / "candidates.jsonl"
    candidates.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scale = scale_of()
    return SimpleNamespace(
        root=root, scale=scale, run=save_run(root / "run", scale), candidates=candidates
    )
