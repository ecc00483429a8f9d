"""From a portfolio over candidates to trained policies: what to train next, and on what."""

import json
import shlex
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxalign.data.messages import Conversation
from jaxalign.errors import InputError
from jaxalign.experiments.palm.statistics import BuiltPortfolio
from jaxalign.files import write_text
from jaxalign.palm import Portfolio, tilted_log_probs
from jaxalign.palm.candidates import Candidates
from jaxalign.palm.closed_form import ClosedForm
from jaxalign.palm.domain import Floats

FOLDER = "train"
"""Folder of the distillation data, one file per member."""


def write_distillation(
    out: Path, portfolio: Portfolio, candidates: Candidates, oracle: ClosedForm
) -> list[Path]:
    """Write for each member the answers that it prefers, as `jaxalign sft` reads them.

    Args:
        out: folder of the portfolio; the files are train/member_1.jsonl and so on.
        portfolio: chosen on the candidates.
        candidates: of the prompts that the members were chosen on. Those to certify on are left
            out, so that what is trained can be certified on them.
        oracle: over these candidates.

    Returns:
        The files.

    Raises:
        InputError: candidates without their answers.
    """
    if candidates.answers is None:
        raise InputError("candidates: found none with answers, expected their texts; give some.")
    paths = []
    for number in range(1, len(portfolio.members)):
        weight = jnp.asarray(portfolio.members.payload["weight"][number], oracle.rewards.dtype)
        place = best_candidates(oracle, weight)
        chosen = candidates.answers[np.arange(len(place)), place]
        rows = [
            {
                "prompt": prompt.messages if isinstance(prompt, Conversation) else prompt,
                "completion": answer,
            }
            for prompt, answer in zip(candidates.prompts, chosen, strict=True)
        ]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        paths.append(out / FOLDER / f"member_{number}.jsonl")
        write_text(paths[-1], "".join(f"{line}\n" for line in lines))
    return paths


def best_candidates(oracle: ClosedForm, weight: Floats | jnp.ndarray) -> NDArray[np.intp]:
    """Return the most probable candidate [X] of each prompt under the policy of a weight [R].

    Among answers that were drawn from the reference, it is the best of n for the weight.

    Example:
        >>> import numpy as np
        >>> from jaxalign.experiments.palm.training import best_candidates
        >>> from jaxalign.palm import ClosedForm
        >>> oracle = ClosedForm(np.array([[[0.0, 1.0], [1.0, 0.0]]]), None, beta=0.5)
        >>> best_candidates(oracle, np.array([1.0, 0.0]))
        array([1])
    """
    weight = jnp.asarray(weight, oracle.rewards.dtype)
    found = tilted_log_probs(oracle.rewards, oracle.log_ref, weight, oracle.beta)
    return np.asarray(jnp.argmax(found, axis=1), np.intp)


def next_steps(built: BuiltPortfolio, out: Path, exported: bool) -> str:
    """Return what to train next, as a section of the report; empty for trained policies.

    Args:
        built: a portfolio over candidates.
        out: its folder.
        exported: whether the distillation data were written.
    """
    portfolio = built.portfolio
    count = len(portfolio.members) - 1
    if built.weight_names is not None or portfolio.scale is None or not count:
        return ""
    names = portfolio.scale.names
    run = [f"{out}_member_{number}" for number in range(1, count + 1)]
    files = [str(out / FOLDER / f"member_{number}.jsonl") for number in range(1, count + 1)]
    lines = [
        "## What to train next",
        "",
        "The members are policies over the candidates and answer no new prompt. Each is the "
        "optimum for its weights. To serve them, train one adapter per member, and choose among "
        "these.",
        "",
        "By distillation, on the best of the candidates of each prompt for the member's weights"
        + (":" if exported else f" (add `--export` to write {FOLDER}/member_N.jsonl):"),
        "",
        "```bash",
        *(
            shlex.join(["jaxalign", "sft", "--model", "BASE", "--data", file, "--out", place])
            for file, place in zip(files, run, strict=True)
        ),
        "```",
        "",
    ]
    if portfolio.config.weights == "simplex":
        weights = np.asarray(portfolio.members.payload["weight"][1:], np.float64).round(3)
        # Rounded shares still sum to 1.
        weights[np.arange(count), weights.argmax(axis=1)] += 1 - weights.sum(axis=1)
        shares = [
            ",".join(f"{name}={share:.3f}" for name, share in zip(names, row, strict=True))
            for row in weights
        ]
        lines += [
            "Or by reinforcement learning, where the rewards are functions or models "
            "(`rewards: [...]` in MOC.yaml):",
            "",
            "```bash",
            *(
                "jaxalign moc train --model BASE --data PROMPTS --config MOC.yaml --baseline "
                f"morlhf --weight {shlex.quote(share)} --out {shlex.quote(place)}"
                for share, place in zip(shares, run, strict=True)
            ),
            "```",
            "",
        ]
    lines += [
        "Then the portfolio of what was trained, on prompts that were not trained on:",
        "",
        "```bash",
        "jaxalign palm build --policies "
        + " ".join(map(shlex.quote, run))
        + f" --data PROMPTS --rewards {shlex.join(names)} --out {shlex.quote(f'{out}_trained')}",
        "```",
    ]
    return "\n".join(lines) + "\n"
