"""Training state on disk, by orbax: whole or absent, restored bit for bit, on any mesh."""

import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxalign.errors import InputError
from jaxalign.models.params import PyTree
from jaxalign.runs.processes import on_first_process

FORMAT = 1
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def save_state(path: str | Path, state: PyTree) -> None:
    """Write a tree of arrays and random keys; what was there goes when the new one is whole.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from jaxalign.train.checkpoint import load_state, save_state
        >>> path = tempfile.mkdtemp() + "/state"
        >>> save_state(path, {"kernel": jnp.ones(2)})
        >>> load_state(path, {"kernel": jnp.zeros(2)})["kernel"].tolist()
        [1.0, 1.0]
    """
    path = Path(path).absolute()
    _finish(path)
    if not path.exists():
        _begin(path, state).result()
        return
    # orbax would remove the old one before it writes.
    aside = _aside(path)
    on_first_process(lambda: shutil.rmtree(aside, ignore_errors=True))
    _begin(aside, state).result()
    on_first_process(lambda: _remove(path))
    _finish(path)


def load_state(path: str | Path, like: PyTree) -> PyTree:
    """Read what `save_state` or `Checkpoints` wrote, on whatever mesh it was.

    Args:
        path: the checkpoint folder.
        like: a tree of the same structure, of arrays whose values do not matter or of
            `jax.ShapeDtypeStruct`, whose `sharding` says where the leaf goes (the first device of
            this process without one).

    Returns:
        The state, of the structure, types and placement of `like`.

    Raises:
        InputError: where there is no checkpoint, or it is damaged, of another format version, or
            of another structure, shape or type.
    """
    from orbax.checkpoint import v1 as ocp

    path = Path(path).absolute()
    _finish(path)
    about = _about(path)
    leaves, structure = jax.tree.flatten(like)
    _compare(path, about["leaves"], _describe(like))
    abstract = {f"{i:04d}": _abstract(leaf) for i, leaf in enumerate(leaves)}
    try:
        stored = ocp.load(path, abstract) if leaves else {}
    except jax.errors.JaxRuntimeError:
        raise  # of the device, such as too little memory
    except Exception as error:  # orbax raises several kinds, Exception itself among them
        raise _damaged(path, "cannot be read") from error
    values = [stored[f"{i:04d}"] for i in range(len(leaves))]
    for (name, *_), mine, theirs in zip(about["leaves"], _sums(values), about["sums"], strict=True):
        if mine != theirs:
            raise _damaged(path, f"holds other bits in {name!r} than were written")
    keys = about["keys"]
    typed = [
        jax.random.wrap_key_data(value, impl=keys[str(i)]) if str(i) in keys else value
        for i, value in enumerate(values)
    ]
    return jax.tree.unflatten(structure, typed)


class Checkpoints:
    """The checkpoints of one run, a folder a step, written while training goes on.

    Every process of a run makes the same calls. As a context it waits, at the end, for what is
    being written; a run killed before that leaves the checkpoints before it.

    Attributes:
        folder: where they are.
        keep: how many stay; the oldest goes when a newer one is whole.
    """

    def __init__(self, folder: str | Path, keep: int = 3) -> None:
        if keep < 1:
            raise InputError(f"keep is {keep} checkpoints; expected at least 1.")
        self.folder, self.keep = Path(folder).absolute(), keep
        self._pending: PyTree = None

    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, ascending."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir())
        return sorted(int(name) for name in names if re.fullmatch(r"\d{8,}", name))

    def latest_step(self) -> int | None:
        """The last of `steps`, None without one."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: PyTree) -> None:
        """Start to write the state of a step; it may be donated as soon as this returns.

        Returns when the state is copied to the host. It waits for the checkpoint before, if that
        is still being written, so that the host holds one copy at most.

        Raises:
            InputError: for a step that is there already.
        """
        self.wait()
        path = self._path(step)
        if path.exists():
            raise InputError(f"{path} is there already: resume from it, or remove it.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._pending = _begin(path, state)

    def restore(self, like: PyTree, step: int | None = None) -> PyTree:
        """The state of a step, by default the latest; `like` and errors as in `load_state`."""
        self.wait()
        step = self.latest_step() if step is None else step
        if step is None:
            raise InputError(f"{self.folder}: found no checkpoint; expected one to resume from.")
        return load_state(self._path(step), like)

    def wait(self) -> None:
        """Return when nothing is being written any more, and the oldest are gone."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        pending.result()
        on_first_process(self._drop)

    def _drop(self) -> None:
        for step in self.steps()[: -self.keep]:
            _remove(self._path(step))

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:08d}"

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: PyTree
    ) -> None:
        try:
            self.wait()
        except Exception as second:
            if error is None:
                raise
            error.add_note(f"the checkpoint that was being written is not whole either: {second}")


class BestParams:
    """The parameters of the best step of one run, a folder a step, beside its checkpoints.

    A run that is resumed from a checkpoint may find another best step after it. The best step as of
    the newest whole checkpoint therefore stays on disk until a newer checkpoint is whole.
    """

    def __init__(self, folder: str | Path, checkpoints: Checkpoints) -> None:
        """Take up a run at its newest checkpoint; what a killed run kept after it goes."""
        self._saved, self._checkpoints = Checkpoints(folder), checkpoints
        first = checkpoints.latest_step() or 0
        on_first_process(lambda: self._keep({old for old in self._saved.steps() if old <= first}))

    def save(self, step: int, params: PyTree) -> None:
        """Write the parameters of a step that is the best so far."""
        save_state(self._path(step), params)
        self._checkpoints.wait()
        resumed_from = self._checkpoints.latest_step() or 0
        needed = max((old for old in self._saved.steps() if old <= resumed_from), default=step)
        on_first_process(lambda: self._keep({needed, step}))

    def load(self, step: int, like: PyTree) -> PyTree:
        """Read the parameters of the best step; `like` and errors as in `load_state`."""
        return load_state(self._path(step), like)

    def _keep(self, steps: set[int]) -> None:
        for step in self._saved.steps():
            if step not in steps:
                _remove(self._path(step))

    def _path(self, step: int) -> Path:
        return self._saved.folder / f"{step:08d}"


def _begin(path: Path, state: PyTree) -> PyTree:
    """Start to write; the answer's `result()` returns when it is whole."""
    from orbax.checkpoint import v1 as ocp

    leaves = jax.tree.leaves(state)
    plain = [_plain(leaf) for leaf in leaves]
    about = {
        "format": FORMAT,
        "leaves": _describe(state),
        "keys": {
            str(i): str(jax.random.key_impl(leaf)) for i, leaf in enumerate(leaves) if _is_key(leaf)
        },
        "sums": _sums(plain),
    }
    # Leaves by number: optimiser states are tuples of types that orbax need not know.
    named = {f"{i:04d}": leaf for i, leaf in enumerate(plain)}
    return ocp.save_async(path, named, custom_metadata=about)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _finish(path: Path) -> None:
    """Put a whole checkpoint in its place where a run was killed between two renames."""

    def place() -> None:
        if not path.exists() and _aside(path).exists():
            _aside(path).rename(path)

    on_first_process(place)


def _remove(path: Path) -> None:
    # Renamed first: a folder half gone is not to look like a checkpoint.
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    shutil.rmtree(old)


def _about(path: Path) -> dict[str, PyTree]:
    from orbax.checkpoint import v1 as ocp

    if not path.is_dir():
        raise InputError(f"{path}: found no checkpoint; expected the folder of one.")
    try:
        about = ocp.metadata(path).custom_metadata
    except Exception as error:  # as in load_state
        raise _damaged(path, "cannot be read") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else None
        raise InputError(
            f"{path}: format version {found}; this jaxalign reads version {FORMAT}: start again, "
            "or use the version that wrote it."
        )
    return about


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path}: the checkpoint is damaged, it {what}: remove this folder.")


def _describe(tree: PyTree) -> list[list[PyTree]]:
    """Path, shape and type of each leaf."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [
        [jax.tree_util.keystr(path, simple=True, separator="/"), [*leaf.shape], str(leaf.dtype)]
        for path, leaf in flat
    ]


def _compare(path: Path, stored: list[list[PyTree]], wanted: list[list[PyTree]]) -> None:
    theirs, mine = ({name: rest for name, *rest in leaves} for leaves in (stored, wanted))
    for name in (*theirs, *mine):
        if theirs.get(name) != mine.get(name):
            found, expected = (
                f"{leaves[name][1]}{leaves[name][0]}" if name in leaves else "nothing"
                for leaves in (theirs, mine)
            )
            raise InputError(
                f"{path}: {name!r} holds {found}; expected {expected}: this is the checkpoint of "
                "another model, optimiser or setting."
            )


def _is_key(leaf: PyTree) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: PyTree) -> PyTree:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _abstract(leaf: PyTree) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    plain = leaf
    if _is_key(leaf):
        plain = jax.eval_shape(jax.random.key_data, leaf)
        if isinstance(leaf, jax.Array):
            sharding = jax.random.key_data(leaf).sharding
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(plain.shape, plain.dtype, sharding=sharding)


def _sums(leaves: list[PyTree]) -> list[int]:
    """A number for the bits of each leaf, the same however it is sharded.

    The store's own checksums leave the arrays' bytes out.
    """
    groups: dict[PyTree, list[int]] = {}
    for i, leaf in enumerate(leaves):
        where = frozenset(leaf.sharding.device_set) if isinstance(leaf, jax.Array) else None
        groups.setdefault(where, []).append(i)
    sums = [0] * len(leaves)
    for indices in groups.values():
        for i, total in zip(
            indices, jax.device_get(_totals([leaves[i] for i in indices])), strict=True
        ):
            sums[i] = int(total)
    return sums


@jax.jit
def _totals(leaves: list[jax.Array]) -> list[jax.Array]:
    def total(leaf: jax.Array) -> jax.Array:
        plain = leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else leaf
        words = jax.lax.bitcast_convert_type(plain, _WORDS[plain.dtype.itemsize])
        return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)

    return [total(leaf) for leaf in leaves]
