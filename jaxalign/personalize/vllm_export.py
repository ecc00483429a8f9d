"""Policies as LoRA adapters in the format of peft, for a vLLM server behind `jaxalign serve`."""

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxalign.errors import InputError
from jaxalign.files import check_new_folder, expand_user, write_folder_aside
from jaxalign.models import lora
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.language import LanguageModel, describe
from jaxalign.models.params import Params
from jaxalign.models.peft import save_adapter
from jaxalign.models.resolve import resolve
from jaxalign.personalize.policies import Conditioned, Mixing, Separate, Soups, WholeModels
from jaxalign.personalize.saved import SavedPolicies
from jaxalign.rewards.reward_scale import RewardIds

TABLE, SCRIPT = "routing.json", "start_vllm.sh"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM takes for --max-lora-rank."""
Exportable = Soups | Separate | Conditioned


@dataclass(frozen=True)
class ExportedPolicy:
    """One policy of a routing table.

    Attributes:
        name: of the model on the server.
        folder: of its adapter, below that of the table.
        rank: of the adapter, as written.
        weights: what makes the policy: the share of each adapter, or the preference.
        rewards: its expected rewards over those of the reference, in standard deviations.
        kl: its KL to the reference, in nats per answer.
    """

    name: str
    folder: str
    rank: int
    weights: tuple[float, ...]
    rewards: tuple[float, ...]
    kl: float


@dataclass(frozen=True)
class RoutingTable:
    """Which model of the server is which policy, and what the policies achieve.

    Attributes:
        source: folder that was exported.
        base: name of the base model, which is the reference.
        base_sha256: of its weights.
        base_folder: of its files on this machine, which the script serves.
        served_base: name of the base model on the server.
        rewards: names and scale of the rewards.
        beta: price of one nat of KL in levels of the rewards; 0 for a conditioned policy.
        policies: the adapters.
    """

    source: str
    base: str
    base_sha256: str
    base_folder: str
    served_base: str
    rewards: RewardIds
    beta: float
    policies: tuple[ExportedPolicy, ...]

    @property
    def max_rank(self) -> int:
        """The largest rank of the adapters."""
        return max(policy.rank for policy in self.policies)

    def script(self) -> str:
        """Return a script that starts vLLM with the base model and all adapters."""
        modules = " ".join(f'{one.name}="$here"/{one.folder}' for one in self.policies)
        options = (
            f"--served-model-name {shlex.quote(self.served_base)} --host 127.0.0.1",
            f"--enable-lora --max-lora-rank {self.max_rank} --max-loras {len(self.policies)}",
            f'--lora-modules {modules} "$@"',
        )
        lines = (
            "#!/bin/sh",
            f"# Serves {self.served_base} and its adapters at http://127.0.0.1:8000/v1.",
            "# Options of `vllm serve` may follow, such as --port 8001 or --dtype bfloat16.",
            'here=$(cd "$(dirname "$0")" && pwd)',
            " \\\n  ".join((f"exec vllm serve {shlex.quote(self.base_folder)}", *options)),
        )
        return "\n".join(lines) + "\n"


def export_vllm(saved: SavedPolicies, out: str | Path) -> RoutingTable:
    """Write policies as LoRA adapters, with their routing table and a script that serves them.

    A soup becomes one adapter with the factors of its adapters side by side, which is exact. Ranks
    are rounded up by zeros to those that vLLM takes.

    Args:
        saved: of `open_policies`.
        out: new or empty folder.

    Raises:
        InputError: policies that are no LoRA adapters, none beside the reference, a rank above
            512, a base model that vLLM does not serve with adapters, or a folder that is in use.
    """
    out = expand_user(out)
    check_new_folder(out)
    if len(saved.weights) < 2:
        raise InputError(
            f"{saved.folder}: found only the reference, expected one policy or more beside it: "
            f"serve the base model with `vllm serve {saved.base}`."
        )
    model, folder = _described_base(saved)
    policies = _exportable(saved, model)
    adapters = [adapter_of(policies, weight) for weight in saved.weights[1:]]
    table = _routing_table(saved, model, folder, list(map(rank_of, adapters)))
    with write_folder_aside(out, last=TABLE) as aside:
        for policy, adapter in zip(table.policies, adapters, strict=True):
            targets = tuple(dict.fromkeys(path[-1] for path in lora.adapted_pairs(adapter)))
            # Alpha is the rank: the factors are scaled already.
            config = lora.LoraConfig(policy.rank, float(policy.rank), targets=targets)
            wide = lora.widen(adapter, policy.rank)
            save_adapter(aside / policy.folder, wide, config, saved.base, model.config)
        (aside / SCRIPT).write_text(table.script(), "utf-8")
        text = json.dumps(asdict(table), indent=1, allow_nan=False)
        (aside / TABLE).write_text(text + "\n", "utf-8")
    return table


def adapter_of(policies: Exportable, weight: NDArray[np.float64]) -> Params:
    """Return one scaled adapter that answers as a policy, its adapters side by side.

    Args:
        policies: what makes a policy of A weights.
        weight: [A], some not 0.
    """
    used = np.flatnonzero(weight)
    if isinstance(policies, Conditioned):
        ((config, tree),) = policies.adapters
        stack = jax.tree.map(lambda leaf: leaf[:, used], lora.scaled(tree, config))
    else:
        some = [policies.adapters[number] for number in used]
        stack = lora.stack([lora.scaled(tree, config) for config, tree in some])
    return lora.concatenate(stack, jnp.asarray(weight[used]))


def rank_of(adapter: Params) -> int:
    """Return the largest rank of an adapter's matrices."""
    return max(int(pair["a"].shape[-1]) for pair in lora.adapted_pairs(adapter).values())


def _routing_table(
    saved: SavedPolicies, model: LanguageModel, folder: Path, ranks: list[int]
) -> RoutingTable:
    rewards, kl = saved.achieved()
    policies = []
    for number, rank in enumerate(ranks, 1):
        name = saved.names[number]
        weights, beyond = saved.weights[number], rewards[number] - rewards[0]
        policies.append(
            ExportedPolicy(
                name,
                f"adapters/{name}",
                _taken_rank(name, rank),
                tuple(weights.tolist()),
                tuple(beyond.tolist()),
                float(kl[number]),
            )
        )
    return RoutingTable(
        str(saved.folder.absolute()),
        saved.base,
        model.sha256,
        str(folder.absolute()),
        Path(saved.base).name,
        saved.reward_ids(),
        saved.beta,
        tuple(policies),
    )


def _taken_rank(name: str, rank: int) -> int:
    """The smallest rank of vLLM that is no smaller."""
    if rank > RANKS[-1]:
        raise InputError(
            f"{name} has rank {rank}, its adapters side by side; expected {RANKS[-1]} or less, "
            "which is the most that vLLM takes: train adapters of lower rank, or build the "
            "portfolio with --policies.kind separate, whose members are one adapter each."
        )
    return next(taken for taken in RANKS if taken >= rank)


def _described_base(saved: SavedPolicies) -> tuple[LanguageModel, Path]:
    """The base model without its parameters, and the folder of its files."""
    found = resolve(saved.base)
    model = describe(found, saved.base)
    if found.adapters:
        raise InputError(
            f"{saved.folder}: the base model {saved.base} is a LoRA adapter itself, expected a "
            "whole model, since vLLM has one adapter per request: write it as one with `jaxalign "
            "merge`, and build the portfolio with --model and that folder."
        )
    if found.weights[0].suffix == ".gguf":
        raise InputError(
            f"{saved.folder}: the base model {saved.base} is in GGUF, expected safetensors, which "
            "vLLM serves with LoRA adapters: write it with `jaxalign.models.save_language_model`, "
            "and train and build on that folder."
        )
    if not isinstance(model.config, DecoderConfig):
        raise InputError(
            f"{saved.folder}: the base model {saved.base} is a GPT-2, which vLLM does not serve "
            "with LoRA adapters, expected one of the Llama, Mistral or Qwen family: serve the "
            "folder with `jaxalign serve --engine local`."
        )
    return model, found.folder


def _exportable(saved: SavedPolicies, model: LanguageModel) -> Exportable:
    """The policies, if each of them is one adapter."""
    policies = saved.adapt(model)
    if isinstance(policies, WholeModels):
        what = "members that are whole models"
        remedy = (
            "start a server for each with `vllm serve MODEL`, or fine-tune adapters (`jaxalign sft "
            "--trunk.method lora`) and build the portfolio over these"
        )
    elif isinstance(policies, Mixing):
        what = "members that draw each token from several adapters together"
        remedy = (
            "build the portfolio with --policies.kind soups, or serve it with `jaxalign serve "
            "--engine local`"
        )
    elif isinstance(policies, Conditioned) and policies.policy.conditioning != "adapters":
        what = f"a policy that is given preferences by {policies.policy.conditioning}"
        remedy = (
            "train it with --moc.conditioning adapters, or serve it with `jaxalign serve --engine "
            "local`"
        )
    else:
        return policies
    raise InputError(
        f"{saved.folder}: found {what}, expected LoRA adapters or their soups; {remedy}."
    )
