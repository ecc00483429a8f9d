"""Small made-up choices, and one run of `jaxalign mrm train` on them with its adapted users."""

import json
from types import SimpleNamespace

import numpy as np
import yaml
from cli_calls import call, write_rows

USERS, ITEMS, WIDTH, CHOICES = 30, 24, 6, 24
FEW = 8  # users with three choices only


def answer(item):
    return f"answer {item}"


def make_choices():
    """Features of items, and rows of users who choose by weights of their own; some are ties."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((ITEMS, WIDTH)).astype(np.float32)
    rows = []
    for number in range(USERS):
        weights = 2 * rng.standard_normal(WIDTH)
        seen = set()
        while len(seen) < (3 if number % 4 == 3 and number < 4 * FEW else CHOICES):
            pair = tuple(sorted(rng.choice(ITEMS, 2, replace=False).tolist()))
            if pair in seen:
                continue
            seen.add(pair)
            margin = weights @ (features[pair[0]] - features[pair[1]])
            chosen, rejected = pair if rng.logistic() < margin else pair[::-1]
            row = {"user": f"user{number:02d}", "chosen": answer(chosen)}
            row |= {"rejected": answer(rejected)}
            rows.append(row | ({"tie": True} if len(seen) % 8 == 0 else {}))
    return features, rows


def write_features(path, values, **more):
    np.savez(path, features=values, ids=np.array([answer(i) for i in range(len(values))]), **more)
    return path


def build(root):
    """A folder with choices, features, a config and one trained run with its adapted users."""
    features, rows = make_choices()
    config = {
        "features": {"path": str(write_features(root / "features.npz", features))},
        "split": {"item_folds": 0, "validation_share": 0.3},
        "bayes": {"em_steps": 4, "pseudo_users": [10.0]},
        "mrm": {"epochs": 4, "users_per_batch": 4, "snapshots": 2, "rates": [0.1]},
        "methods": ["bayes", "mrm"],
        "seeds": 1,
        "shots": [0, 5],
        "draws": 200,
    }
    (root / "config.yaml").write_text(yaml.dump(config))
    made = SimpleNamespace(
        root=root,
        features=features,
        rows=rows,
        config=root / "config.yaml",
        table=root / "features.npz",
        choices=write_rows(root / "choices.jsonl", rows),
        run=root / "run",
    )
    made.trained = train(made, made.choices, made.run)
    assert made.trained.code == 0, made.trained.err
    made.report = json.loads((made.run / "report.json").read_text())
    made.adapted = call(
        "mrm", "adapt", "--model", made.run, "--data", made.choices, "--features", made.table
    )
    assert made.adapted.code == 0, made.adapted.err
    made.texts = root / "answers.txt"
    made.texts.write_text("".join(f"{answer(i)}\n" for i in range(5)))
    return made


def train(world, choices, out, *more):
    return call("mrm", "train", "--config", world.config, "--data", choices, "--out", out, *more)


def rank(world, *more, texts=None):
    texts = texts or world.texts
    return call("mrm", "rank", "--model", world.run, "--texts", texts, *more)
