"""From trained policies to a certified portfolio in a folder: resumable policy by policy."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import jax
import numpy as np

from jaxalign.config import load_config, to_yaml
from jaxalign.data.messages import prompt_text
from jaxalign.data.prompts import Prompt
from jaxalign.experiments.palm._run import (
    CONFIG,
    KIND,
    Judged,
    check_grid,
    confirmed,
    judge,
    write_built,
)
from jaxalign.experiments.palm.policies import (
    PolicyPool,
    load_pool,
    load_prompts_for,
    resolved_config,
)
from jaxalign.experiments.palm.statistics import BuiltPortfolio
from jaxalign.files import expand_user, write_text
from jaxalign.models.chat import tokenize_prompt
from jaxalign.models.language import load_language_model
from jaxalign.models.sampling import Sampling
from jaxalign.palm import HeldOut, known_pool, stack
from jaxalign.palm.candidates import prompt_marks, split_places, unseen_places
from jaxalign.palm.closed_form import level_scale, stated_units
from jaxalign.palm.config import BuildConfig
from jaxalign.personalize import saved_members
from jaxalign.personalize.policies import WholeModels, identity
from jaxalign.personalize.policy_oracle import AnswerOracle
from jaxalign.progress import Progress, counted
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.rewards.spec import build_rewards
from jaxalign.rewards.vector import TextReward
from jaxalign.runs.run_dir import Identity, check_run_dir, open_run_dir

_VALUES = "values"
_LEAST = 2  # prompts to choose on: values have standard errors over them
Part = Literal["choose", "certify"]


class _Sampler(NamedTuple):
    """What the answers of a pool of policies depend on, besides the prompts."""

    pool: PolicyPool
    reward: TextReward
    config: BuildConfig
    cache: Path

    def on(
        self, part: Part, prompts: Sequence[Prompt], scale: RewardScale | None = None
    ) -> AnswerOracle:
        """The policies on some prompts; answers that are in the cache are not drawn again.

        The two parts have keys of their own: common random numbers are for policies on the same
        prompts, and would only make the certificate's prompts less independent of the others.
        """
        settings = self.config.policies
        return AnswerOracle(
            self.pool.model,
            self.pool.policies,
            prompts,
            self.reward,
            self.config.beta or 0.0,
            Sampling(max_tokens=settings.answer_tokens, temperature=settings.temperature),
            jax.random.fold_in(jax.random.key(self.config.seed), get_args(Part).index(part)),
            samples=settings.samples,
            options=self.pool.options,
            scale=scale,
            reward_range=self.config.checked_range,
            batch_size=settings.batch_size,
            cache=self.cache,
            progress=True,
        )


def run_policies(
    config: BuildConfig,
    folders: Sequence[Path],
    base: str | None,
    source: str,
    out: Path,
    resume: bool = False,
    confirm: bool = False,
) -> BuiltPortfolio:
    """Sample trained policies, choose few of them, certify them on other prompts, and write all.

    Args:
        config: settings of the build.
        folders: of adapters or whole models, or the one of a MOC policy.
        base: base model; None for the one that the first folder names.
        source: prompts, as `load_prompts` takes them.
        out: folder of the portfolio and its policies, scale.json, config.yaml, report and plots;
            state/values holds the answers' rewards, policy by policy.
        resume: whether an unfinished build of the same settings may be continued.
        confirm: whether the grid is built whatever its size.

    Returns:
        BuiltPortfolio.

    Raises:
        InputError: folders, prompts or rewards that cannot be used, a grid above its limit, or a
            folder that holds something else.
    """
    say = Progress().say
    config = resolved_config(folders, config)
    stated_units(config, config.rewards)  # before the reference answers
    check_run_dir(expand_user(out), KIND, config, resume)
    check_grid(config.palm, len(config.rewards), say, confirm)
    pool = load_pool(folders, base, config)
    reward = build_rewards(config.policies.rewards)
    prompts = load_prompts_for(pool.model, source, config.policies)
    parts = split_places(
        len(prompts.prompts), config.certify_share, config.seed, _LEAST, prompts.source
    )
    first, second = ([prompts.prompts[place] for place in part] for part in parts)
    texts = [prompt_text(prompt) for prompt in prompts.prompts]
    about: dict[str, Identity] = {
        "base model": pool.model.sha256,
        "policies": identity(pool.policies),
        "weights of the policies": pool.options,
        "rewards": reward.id,
        "prompts": texts,
        "token ids of the prompts": [
            json.dumps(tokenize_prompt(pool.model, prompt)) for prompt in prompts.prompts
        ],
    }
    run = open_run_dir(out, KIND, config, about, resume)
    write_text(run.path / CONFIG, to_yaml(config))
    config = confirmed(config, confirm)
    say(
        f"{counted(len(pool.options), 'policy', 'policies')}: {_made_of(pool)} "
        f"{', '.join(pool.names)}; {counted(len(texts), 'prompt')}, "
        f"{counted(config.policies.samples, 'answer')} each of at most "
        f"{counted(config.policies.answer_tokens, 'token')}"
    )
    if isinstance(pool.policies, WholeModels):
        say(
            "whole models are loaded one at a time: their parameters take "
            f"{pool.policies.most_bytes / 2**30:.1f} GiB at most, those of the base included"
        )
    sampler = _Sampler(pool, reward, config, run.state / _VALUES)
    plain = sampler.on("choose", first).rewards_of(np.zeros((1, pool.policies.size)))
    scale = level_scale(plain.reshape(-1, len(reward.names)), reward.names, config, pool.scale)
    oracle = sampler.on("choose", first, scale)
    policies = stack(oracle.policies_of(pool.options))
    say(f"answers to {len(second)} other prompts, to certify on")
    evaluator = sampler.on("certify", second, scale)
    evaluator.outcomes(policies)
    found = known_pool(oracle, config.palm, policies)
    judged = Judged(oracle, evaluator, found, scale, prompt_marks(first))
    built = replace(judge(judged, config, source, say), weight_names=pool.names)
    saved_members.Serving(built.portfolio, pool.policies, pool.model, pool.names).save(run.path)
    write_built(run, config, built, {"policies": _described(pool, folders)})
    return built


def certify_policies(folder: Path, source: str) -> HeldOut:
    """Return the worst gaps of a portfolio of trained policies on prompts of a file.

    Prompts that the members were chosen on are left out. The answers are kept in the portfolio's
    folder, so that a certificate that was interrupted is continued.

    Args:
        folder: output folder of a build over policies.
        source: prompts, as `load_prompts` takes them.

    Raises:
        InputError: fewer than 2 other prompts, or as `saved_members.load`.
    """
    folder = expand_user(folder)
    about = saved_members.about_policies(folder)
    config = load_config(BuildConfig, folder / CONFIG, [])
    model = load_language_model(about.base, config.policies.dtype)
    serving = saved_members.load(folder, model)
    portfolio = serving.portfolio
    read = load_prompts_for(model, source, config.policies).prompts
    places = unseen_places(prompt_marks(read), portfolio.chosen_on, source)
    other = [read[place] for place in places]
    options = np.asarray(portfolio.pool.payload["weight"], np.float64)
    pool = PolicyPool(model, serving.policies, options, about.names, portfolio.scale)
    reward = build_rewards(config.policies.rewards)
    sampler = _Sampler(pool, reward, config, folder / "state" / _VALUES)
    evaluator = sampler.on("certify", other, portfolio.scale)
    return portfolio.held_out(evaluator, config.band_draws, config.level)


def built_config(folder: Path) -> BuildConfig | None:
    """Return the config of a build, None where only the portfolio is in the folder.

    Raises:
        InputError: the config cannot be read.
    """
    path = expand_user(folder) / CONFIG
    return load_config(BuildConfig, path, []) if path.is_file() else None


def _made_of(pool: PolicyPool) -> str:
    """The words before the names of what the policies are made of."""
    summed = np.count_nonzero(pool.options, axis=1).max() > 1
    words = {
        "soups": "weighted sums of the adapters",
        "mixing": "mixtures of the adapters",
        "separate": "the adapters",
        "conditioned": "one policy under preferences over",
        "whole": "weighted sums of the models" if summed else "the models",
    }
    return words[pool.policies.kind]


def _described(pool: PolicyPool, folders: Sequence[Path]) -> dict[str, object]:
    """The policies, for report.json."""
    return {
        "kind": pool.policies.kind,
        "base": pool.model.name,
        "folders": [str(folder) for folder in folders],
        "names": list(pool.names),
        "digests": identity(pool.policies),
        "pool": pool.options.tolist(),
    }
