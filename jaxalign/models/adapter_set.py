"""Several adapters of one model, by name: one per prompt, or all mixed token by token."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxalign.data.prompt_rows import PromptRow
from jaxalign.errors import InputError
from jaxalign.models import lora
from jaxalign.models.families import Config
from jaxalign.models.generate import GenerationArguments, PolicyMixture
from jaxalign.models.params import Params
from jaxalign.models.peft import load_adapter


@dataclass(frozen=True, eq=False)
class AdapterSet:
    """Adapters that answer one by one, or together; made by `load_adapter_set`.

    Attributes:
        stack: A scaled adapters, as of `lora.stack`; None for the model alone.
        weights: [A] of a mixture of all adapters, token by token; None where one answers.
    """

    stack: Params | None = field(repr=False)
    weights: tuple[float, ...] | None = None

    def arguments(self, which: Sequence[int]) -> GenerationArguments:
        """Return the arguments of `generate` for B prompts.

        Args:
            which: [B] numbers of the adapter of each prompt; -1 for the model alone. A mixture
                does not look at them.
        """
        if self.stack is None:
            return {}
        if self.weights is None:
            return {"adapters": self.stack, "rows": np.asarray(which, np.int32)}
        weights = np.tile(np.asarray(self.weights, np.float32), (len(which), 1))
        rows = np.tile(np.arange(len(self.weights), dtype=np.int32), (len(which), 1))
        return {"adapters": self.stack, "combine": PolicyMixture(weights, rows)}


def load_adapter_set(
    folders: Sequence[Path], config: Config, weights: Sequence[float] | None = None
) -> AdapterSet:
    """Load adapters from folders of peft.

    Args:
        folders: A folders; none for the model alone.
        config: of the model.
        weights: [A] of a mixture; None where one adapter answers.

    Raises:
        InputError: an adapter cannot be loaded, or does not fit the model or the others.
    """
    found = [load_adapter(folder, config) for folder in folders]
    stack = lora.stack([lora.scaled(tree, own) for own, tree in found]) if found else None
    return AdapterSet(stack, None if weights is None else tuple(weights))


def adapter_numbers(rows: Sequence[PromptRow], folders: Sequence[Path], mixed: bool) -> list[int]:
    """Return the number of each row's adapter, -1 for none.

    Args:
        rows: of a prompt file; a row names its adapter by folder or by the folder's last part.
        folders: of the adapters.
        mixed: whether all adapters answer together, so that no row has to name one.

    Raises:
        InputError: a row names no adapter although there are several, an unknown one, or one by a
            name that several have.

    Example:
        >>> from pathlib import Path
        >>> from jaxalign.data.prompt_rows import PromptRow
        >>> from jaxalign.models.adapter_set import adapter_numbers
        >>> row = PromptRow("Hello.", "p.jsonl, line 1", {"adapter": "b"})
        >>> adapter_numbers([row], [Path("x/a"), Path("x/b")], mixed=False)
        [1]
    """
    names = {path.name: number for number, path in enumerate(folders)}
    several = {path.name for path in folders if names[path.name] != folders.index(path)}
    names |= {str(path): number for number, path in enumerate(folders)}
    numbers = []
    for row in rows:
        name = row.columns.get("adapter")
        if name is None and len(folders) > 1 and not mixed:
            raise InputError(
                f"{row.where}: no adapter named, and there are {len(folders)}: add an `adapter` to "
                "each row, or mix by --weights."
            )
        if name is not None and name not in names:
            known = ", ".join(path.name for path in folders) or "none: give --adapter"
            raise InputError(f"{row.where}: adapter {name!r} is not among {known}.")
        if name in several and name not in map(str, folders):
            which = ", ".join(str(path) for path in folders if path.name == name)
            raise InputError(
                f"{row.where}: the adapter {name!r} may be any of {which}: name it by its folder."
            )
        numbers.append(names[str(name)] if name is not None else len(folders) - 1)
    return numbers
