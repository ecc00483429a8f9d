"""Two adapters that were fine-tuned to answer in two manners, as a portfolio, by commands alone."""

from types import SimpleNamespace

import answer_world
import numpy as np
import tiny_lms
from cli_calls import call, write_rows

from jaxalign import palm
from jaxalign.files import write_json
from jaxalign.rewards.reward_scale import SCALE_FILE

WORDS = ("the", "thing", "in", "an", "inn", "than", "then", "thin", "ant", "hen", "tin", "net")
NAMES = ("brevity", "simplicity")
ANSWERS = {"brief": ".", "long": "a a a a"}
TASTES = {"brief": np.array([2.0, 0.0]), "long": np.array([-2.0, 0.5])}
"""Of users, per standard deviation of the rewards."""
_TRAIN = ("--loop.epochs", 100, "--loop.batch_size", 12, "--optimiser.rate", 0.02,
          "--trunk.lora.rank", 4, "--validation_share", 0)  # fmt: skip
_BUILD = ("--rewards", *NAMES, "--policies.kind", "separate", "--palm.size", 2,
          "--policies.max_tokens", 8, "--policies.samples", 4, "--policies.batch_size", 24,
          "--compare", 0, "--draws", 50)  # fmt: skip


def build(root):
    """Return folders of a base model, a run, and a portfolio of two adapters on its scale."""
    base = tiny_lms.write(root / "base", "llama")
    prompts = [f"say {word}" for word in WORDS]
    for name, answer in ANSWERS.items():
        rows = [{"prompt": prompt, "completion": answer} for prompt in prompts]
        data = write_rows(root / f"{name}.jsonl", rows)
        ran("sft", "--model", base, "--data", data, "--out", root / name, *_TRAIN)
    data = write_rows(root / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    adapters = [root / name for name in ANSWERS]
    scale = answer_world.scale_of(NAMES)
    run = answer_world.save_run(root / "run", scale)
    write_json(root / SCALE_FILE, scale.to_json())
    portfolio = root / "portfolio"
    ran("palm", "build", "--policies", *adapters, "--data", data, "--out", portfolio, *_BUILD,
        "--scale_from", root / SCALE_FILE)  # fmt: skip
    return SimpleNamespace(root=root, base=base, portfolio=portfolio, run=run)


def ran(*words):
    result = call(*words)
    assert result.code == 0, result.err


def member_rewards(portfolio):
    """Rewards of the members over the reference, in standard deviations, from the definitions."""
    found = palm.load(portfolio)
    scale, levels = found.scale, found.members.rewards
    return (levels - levels[0]) * (scale.high - scale.low) / scale.std


def member_of(portfolio, name):
    """Number of the member that is the adapter of a name."""
    weights = palm.load(portfolio).members.payload["weight"]
    return int(np.flatnonzero(weights[:, list(ANSWERS).index(name)])[0])
