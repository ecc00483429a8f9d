"""Completions of a file of prompts, into a file of JSON lines or onto the terminal."""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.config_fields import checks_fields
from jaxalign.data.chat_template import choose_template
from jaxalign.data.prompt_rows import PromptRow
from jaxalign.errors import InputError
from jaxalign.files import expand_user
from jaxalign.moc import files as moc_files
from jaxalign.moc.preferences import parse_preference
from jaxalign.models.adapter_set import adapter_numbers, load_adapter_set
from jaxalign.models.chat import Chat, Completion, complete_tokens, prompt_ids
from jaxalign.models.generate import GenerationArguments
from jaxalign.models.language import LanguageModel, load_language_model
from jaxalign.models.sampling import Sampling
from jaxalign.personalize.policies import Conditioned
from jaxalign.progress import track
from jaxalign.runs.processes import check_same, gather_values, is_first_process
from jaxalign.runs.row_file import RowFile, json_line, open_row_file
from jaxalign.runs.run_dir import Identity, identity_digest, setting_leaves
from jaxalign.train.mesh import inference_shardings

KIND = "generate"
_SPAN = 8  # batches between two writes of the output


@dataclass(frozen=True)
@checks_fields
class GenerateConfig:
    """How prompts are completed.

    Attributes:
        sampling: how tokens are sampled.
        samples: completions of each prompt, at least 1; above 1, with a temperature above 0.
        seed: of the sampling, at least 0.
    """

    sampling: Sampling
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"samples is {self.samples}; expected at least 1.")
        if self.samples > 1 and not self.sampling.temperature:
            raise InputError(
                f"{self.samples} samples at temperature 0 are one and the same: give a temperature "
                "above 0, such as 1."
            )


class RowPolicies(NamedTuple):
    """A model, and the policy on it that completes each of X rows.

    Attributes:
        model: whose tokenizer, parameters and context are used.
        prompts: [X] as the policies read them.
        routes: [X] what chose the policy of each row, such as {"adapter": "warm"}.
        arguments: from B row numbers to the arguments of `generate` for these rows.
        soft_tokens: before each prompt.
        digest: what tells all that the policies add to the model from anything else.
    """

    model: LanguageModel
    prompts: Sequence[str | Chat]
    routes: Sequence[Mapping[str, object]]
    arguments: Callable[[Sequence[int]], GenerationArguments]
    soft_tokens: int
    digest: str


class _Answer(TypedDict):
    """What a line says about a completion."""

    completion: str
    tokens: int
    prompt_tokens: int
    logprob: float
    stopped: bool


class GenerateSummary(NamedTuple):
    """What a call of `complete_rows` did, all processes together.

    Attributes:
        completions: in the whole file.
        new: that this call sampled.
        tokens: of the new completions.
        seconds: that they took, compilation included.
    """

    completions: int
    new: int
    tokens: int
    seconds: float


def adapter_policies(
    name: str,
    rows: Sequence[PromptRow],
    prompts: Sequence[str | Chat],
    folders: Sequence[Path] = (),
    weights: Sequence[float] | None = None,
    *,
    dtype: str = "float32",
    chat_template: str | None = None,
) -> RowPolicies:
    """Return a model as the policy of all rows, or one of its adapters for each row.

    Args:
        name: of the model; or the folder of a MOC policy of one weighting, or of its run, which is
            an adapter of the model that it names.
        rows: X of a prompt file; `adapter` in a row names the adapter that answers.
        prompts: [X] of `as_prompt`.
        folders: of the adapters.
        weights: that mix all adapters token by token, one each; None where one answers.
        dtype: of weights and compute.
        chat_template: name of one of the tokenizer's chat templates; None for its default.

    Raises:
        InputError: a model, an adapter or a row that cannot be used, or a policy that was trained
            on another model.
    """
    folder, about = expand_user(name), None
    if (policy := moc_files.find_policy(folder)) is not None:
        about = moc_files.load_info(policy)
        if about.conditioning != "none":
            raise InputError(
                f"{folder} holds a MOC policy, which needs a preference; found none: add "
                "--preference, or give its base model."
            )
        if folders:
            raise InputError(
                f"{folder} holds an adapter of {about.model}, found --adapter as well; give that "
                "model, and this folder as one more adapter."
            )
        name, folders = about.model, [policy]
    numbers = adapter_numbers(rows, folders, weights is not None)
    model = _model(load_language_model(name, dtype, inference_shardings()), chat_template)
    if policy is not None and about is not None:
        moc_files.check_base(policy, about, model)
    adapters = load_adapter_set(folders, model.config, weights)
    one = weights is None and len(folders) > 0
    return RowPolicies(
        model,
        prompts,
        [{"adapter": folders[number].name} if one else {} for number in numbers],
        lambda chosen: adapters.arguments([numbers[row] for row in chosen]),
        0,
        f"{weights} {tree_digest(adapters.stack)}",
    )


def preference_policies(
    name: str,
    rows: Sequence[PromptRow],
    prompts: Sequence[str | Chat],
    preference: str | None = None,
    *,
    dtype: str = "float32",
    chat_template: str | None = None,
) -> RowPolicies:
    """Return a MOC policy under the preference of each row.

    Args:
        name: folder of the policy, or of the run that trained it.
        rows: X of a prompt file; `preference` in a row is that row's.
        prompts: [X] of `as_prompt`.
        preference: of the rows without one.
        dtype: of weights and compute.
        chat_template: name of one of the tokenizer's chat templates; None for its default.

    Raises:
        InputError: the folder holds no policy, or a row has no preference over its rewards.
    """
    place = moc_files.policy_folder(name)
    if moc_files.load_info(place).conditioning == "none":
        raise InputError(
            f"{place}: the policy was trained for one weighting and reads no preference; found "
            "one: leave --preference out."
        )
    policy = moc_files.load(place, dtype=dtype, shardings=inference_shardings())
    model = _model(policy.model, chat_template)
    routes, table = [], []
    for row in rows:
        own = row.columns.get("preference", preference)
        routes.append({"preference": own})
        table.append(_preference(own, policy.names, row.where))
    preferences = np.array(table)
    policies = Conditioned(policy, np.eye(len(policy.names)))
    return RowPolicies(
        model,
        [policies.prompt(*pair) for pair in zip(prompts, preferences, strict=True)],
        routes,
        policies.stacked(preferences).arguments,
        policies.prefix_tokens,
        tree_digest(policy.trained),
    )


def complete_rows(
    policies: RowPolicies,
    rows: Sequence[PromptRow],
    config: GenerateConfig,
    *,
    batch_size: int = 16,
    out: Path | None = None,
    resume: bool = False,
    show: bool = True,
) -> GenerateSummary:
    """Write completions of prompts as JSON lines: `samples` of the first row, of the second, ...

    A line has `row` and `sample`, both from 0; `prompt`, `completion`; what else the row of the
    prompt has, such as its user; what chose its policy; and about the completion `tokens`,
    `prompt_tokens`, `logprob` in nats, and whether it `stopped` by itself.

    Several processes share the batches, which are those of one process alone; each makes the call,
    and the first one writes.

    Args:
        policies: of each row.
        rows: X of them.
        config: how they are completed. A completion depends on the seed, the number of its row and
            of its sample, and the prompt.
        batch_size: most prompts at once.
        out: file to write; None for standard output.
        resume: go on with the rows that a stopped run has left. The file has the same bytes as one
            that was written without interruption.
        show: a progress bar on standard error.

    Raises:
        InputError: a prompt is too long or cannot be read, `out` is of another run, or another
            process has other settings.
    """
    reserved = config.sampling.max_tokens + policies.soft_tokens
    ids = [
        prompt_ids(policies.model, prompt, reserved, row.where)
        for prompt, row in zip(policies.prompts, rows, strict=True)
    ]
    total, file, identity = len(ids) * config.samples, None, _identity(policies, rows, ids)
    started: dict[str, object] = {
        "--batch-size": batch_size, "--resume": resume, "a file with --out": out is not None,
    }  # fmt: skip
    started |= setting_leaves(asdict(config))
    started |= {name: identity_digest(value) for name, value in identity.items()}
    check_same(started, "start every process with the same settings and files")
    if out is not None:
        file = open_row_file(out, KIND, config, identity, resume)
        if file.finished:
            return GenerateSummary(total, 0, 0, 0.0)
    first = 0 if file is None else file.kept(_SPAN * batch_size)
    start, tokens = time.monotonic(), 0

    def rate() -> str:
        return f"{tokens / (time.monotonic() - start):,.0f} tokens/s"

    batches = _complete_all(policies, rows, ids, config, batch_size, range(first, total), file)
    for batch in track("answering", batches, total - first, len, show, rate):
        tokens += sum(answer["tokens"] for answer in batch.values())
    if file is not None:
        file.finish()
    return GenerateSummary(total, total - first, tokens, time.monotonic() - start)


def _complete_all(
    policies: RowPolicies,
    rows: Sequence[PromptRow],
    ids: Sequence[Sequence[int]],
    config: GenerateConfig,
    batch_size: int,
    places: range,
    file: RowFile | None,
) -> Iterator[dict[int, _Answer]]:
    """Yield batches of answers by their place, and write them once there are some."""
    room = _SPAN * batch_size * jax.process_count()
    for first in range(places.start, places.stop, room):
        here = range(first, min(first + room, places.stop))
        own: dict[int, _Answer] = {}
        for batch in _own_batches(policies, ids, config, batch_size, here):
            own |= batch
            yield batch
        parts = cast(list[list[tuple[int, _Answer]]], gather_values(list(own.items())))
        found = dict(pair for part in parts for pair in part)
        yield {place: found[place] for place in found.keys() - own}
        numbers = [(place, *divmod(place, config.samples)) for place in here]
        lines = (
            _line(row, sample, rows[row], policies.routes[row], found[place])
            for place, row, sample in numbers
        )
        if file is not None:
            file.append(lines)
        elif is_first_process():
            sys.stdout.writelines(map(json_line, lines))
            sys.stdout.flush()


def _own_batches(
    policies: RowPolicies,
    ids: Sequence[Sequence[int]],
    config: GenerateConfig,
    batch_size: int,
    places: range,
) -> Iterator[dict[int, _Answer]]:
    """Yield the batches of this process: all processes take them in turns, one each."""
    count, turn = jax.process_count(), jax.process_index()
    for first in range(places.start, places.stop, _SPAN * batch_size):
        span = range(first, min(first + _SPAN * batch_size, places.stop))
        chosen = [place // config.samples for place in span]
        for batch in complete_tokens(
            policies.model,
            [ids[row] for row in chosen],
            config.sampling,
            _keys(config, span),
            batch_size=batch_size,
            part=slice(turn % count, None, count),
            **policies.arguments(chosen),
        ):
            yield {first + number: _answer(found) for number, found in batch.items()}
        turn -= -(-len(span) // batch_size)  # who is next goes on in the next span


def _answer(found: Completion) -> _Answer:
    return {
        "completion": found.text,
        "tokens": len(found.tokens),
        "prompt_tokens": found.prompt_tokens,
        "logprob": round(float(found.logprobs.sum()), 6),
        "stopped": found.stopped,
    }


def _line(
    number: int, sample: int, row: PromptRow, route: Mapping[str, object], answer: _Answer
) -> dict[str, object]:
    own = {"row": number, "sample": sample, "prompt": row.prompt}
    own["completion"] = answer["completion"]
    return {**own, **row.columns, **route, **answer, **own}


def row_key(seed: int, row: int | jax.Array) -> jax.Array:
    """Return the random key of a row; folded with the number of a sample, it is the sample's."""
    return jax.random.fold_in(jax.random.key(seed), row)


def _keys(config: GenerateConfig, places: range) -> jax.Array:
    numbers = jnp.asarray(places)
    keys = jax.vmap(partial(row_key, config.seed))(numbers // config.samples)
    return jax.vmap(jax.random.fold_in)(keys, numbers % config.samples)


def _identity(
    policies: RowPolicies, rows: Sequence[PromptRow], ids: Sequence[Sequence[int]]
) -> dict[str, Identity]:
    """What decides the lines besides the settings, by the name that messages call it."""
    parts = zip(ids, rows, policies.routes, strict=True)
    return {
        "model": policies.model.sha256,
        "dtype": str(policies.model.config.dtype),
        "adapter or policy": policies.digest,
        "prompts": [
            json.dumps([own, row.prompt, row.columns, route], default=str)
            for own, row, route in parts
        ],
    }


def _model(model: LanguageModel, chat_template: str | None) -> LanguageModel:
    if chat_template is not None:
        choose_template(model.tokenizer, chat_template)
    return model


def tree_digest(tree: object) -> str:
    """Return the sha256 of the arrays of a tree and their places in it, in hexadecimal."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _preference(found: object, names: tuple[str, ...], where: str) -> np.ndarray:
    """The preference [R] of a row."""
    if isinstance(found, dict):
        found = ",".join(f"{name}={share}" for name, share in found.items())
    if not isinstance(found, str):
        raise InputError(
            f"{where}: found the preference {found!r}, expected text such as {names[0]}=1; add one "
            "to each row, or --preference for those without."
        )
    try:
        return parse_preference(found, names)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
