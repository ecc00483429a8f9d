"""A run that starts from an earlier one: what that run learned is where a fit begins."""

from dataclasses import dataclass
from pathlib import Path

from jaxalign.data.splits import UserSplit, split_users
from jaxalign.errors import InputError
from jaxalign.experiments.mrm.config import MRMRunConfig, method_of
from jaxalign.experiments.mrm.data import Encoded
from jaxalign.mrm.model import UserModel, load
from jaxalign.mrm.reduce import Projection
from jaxalign.rewards.reward_scale import expect_scale, load_scale


@dataclass(frozen=True)
class EarlierRun:
    """A finished run.

    Attributes:
        folder: of the run.
        model: that it saved.
        split: its users by role.
    """

    folder: Path
    model: UserModel
    split: UserSplit


def load_start(folder: Path, config: MRMRunConfig) -> EarlierRun:
    """Read the run that another one starts from.

    Raises:
        InputError: no finished run, a model of a method that cannot start from it, or one that was
            trained with settings of the method or of its directions under which its parameters mean
            something else.
    """
    model = load(folder, with_users=False)
    name = model.method.name
    if not model.method.warm_start:
        raise InputError(
            f"--from {folder}: holds a model of {name}, which cannot be trained further; train "
            "without --from."
        )
    if name not in config.methods:
        raise InputError(
            f"--from {folder}: holds a model of {name}, expected one of the methods "
            f"({', '.join(config.methods)}): add it to methods, or train without --from."
        )
    method = method_of(config, name)
    for setting in method.start_settings():
        old, new = (getattr(one.settings, setting) for one in (model.method, method))
        if old != new:
            raise InputError(
                f"--from {folder}: was trained with {name}.{setting} {old}; found {new}, expected "
                f"the same: set {name}.{setting} as in that run, or train without --from."
            )
    if method.inputs == "projected" and model.projection.scale is None:
        for setting in ("max_dims", "whiten"):
            old, new = (getattr(one.features, setting) for one in (model, config))
            if old != new:
                raise InputError(
                    f"--from {folder}: was trained with features.{setting} {old}, and its "
                    f"directions stay; found {new}, expected the same: set features.{setting} as "
                    "in that run, or train without --from."
                )
    return EarlierRun(folder, model, UserSplit.load(folder / "splits.json"))


def extended_split(earlier: EarlierRun, users: tuple[str, ...], config: MRMRunConfig) -> UserSplit:
    """Return roles of users: those of the earlier run keep theirs, so that no test user is known.

    Args:
        earlier: the run that this one starts from.
        users: of the choices.
        config: shares of the roles among users who are new.
    """
    old, there = earlier.split, set(users)
    known = {*old.train, *old.validation, *old.test}
    fresh = tuple(user for user in users if user not in known)
    shares = (config.split.unseen_share, config.split.validation_share)
    try:
        added = split_users(fresh, config.split.seed, *shares)
    except InputError:  # too few of them to cut into roles
        added = UserSplit(fresh, (), (), old.seed)

    def joined(role: str) -> tuple[str, ...]:
        kept = (user for user in getattr(old, role) if user in there)
        return (*kept, *getattr(added, role))

    return UserSplit(joined("train"), joined("validation"), joined("test"), config.split.seed)


def earlier_projection(earlier: EarlierRun, encoded: Encoded, config: MRMRunConfig) -> Projection:
    """Return the earlier run's map from features to what the method works on.

    Raises:
        InputError: the features are not those of the earlier run, or another scale is given, or
            stated beside them.
    """
    model, projection = earlier.model, earlier.model.projection
    scale = projection.scale
    width = encoded.values.shape[1]
    same = model.encoder_sha256 == encoded.encoder_sha256 and width == projection.matrix.shape[0]
    if not same or (None if scale is None else scale.names) != encoded.names:
        raise InputError(
            f"--from {earlier.folder}: was trained on other features than these ({width} wide); "
            "expected the same encoder, or a feature file with the same columns."
        )
    if scale is not None:
        known, of = (scale.digest, model.stated_scale), f"the run of --from {earlier.folder}"
        expect_scale(encoded.scale, known, config.features.path, of)
        if config.features.scale:
            wanted = load_scale(config.features.scale)
            expect_scale(wanted, known[:1], f"features.scale {config.features.scale}", of)
    return projection
