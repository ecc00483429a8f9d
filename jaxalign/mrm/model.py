"""A trained user reward model: saved, loaded, and what it makes of a user's choices."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.preferences import RowDetails
from jaxalign.errors import InputError
from jaxalign.files import expand_user
from jaxalign.models.resolve import stated_name
from jaxalign.mrm.adaptation import Gate
from jaxalign.mrm.bayes import Prior
from jaxalign.mrm.calibrated import Calibrated
from jaxalign.mrm.config import FeatureConfig
from jaxalign.mrm.known_items import KnownEffects
from jaxalign.mrm.reduce import Projection
from jaxalign.mrm.registry import (
    METHODS,
    Candidate,
    Fitted,
    Inferred,
    PosteriorMethod,
    RatingsMethod,
    UserRewardMethod,
    WeightsMethod,
    make_method,
    require,
)
from jaxalign.mrm.sites import Sites
from jaxalign.recognise import instead
from jaxalign.rewards.reward_scale import RewardIds, RewardScale
from jaxalign.runs import finished_report, load_artifact, save_artifact
from jaxalign.runs.artifact import Arrays, subtree
from jaxalign.runs.user_store import UserStore, open_users

KIND, RUN_KIND = "user model", "mrm train"
MODEL_FILE, USERS_FILE = "model.safetensors", "users.sqlite"
REMEDY = "train it with `jaxalign mrm train`"


@dataclass(frozen=True)
class AboutUserModel:
    """What the file of a model says beside its arrays.

    Attributes:
        method: the name that the method is registered under.
        settings: of the method, checked against the type of its settings when it is loaded.
        candidate: what validation chose.
        features: how texts become features.
        encoder_sha256: digest of the encoder's weights, empty for given features.
        scale: of the named base rewards, null for learned features.
        with_prompts: whether the items of the choices were answers with their prompts.
        gate: which users the model adapts to.
        stated_scale: digest of the scale that the file of the named rewards stated, where weights
            were put on another one; empty otherwise.
    """

    method: str
    settings: dict[str, object]
    candidate: dict[str, int | float | str | bool | None]
    features: FeatureConfig
    encoder_sha256: str
    scale: dict[str, list[str] | list[float]] | None
    with_prompts: bool
    gate: Gate = field(default_factory=Gate)
    stated_scale: str = ""


@dataclass(frozen=True)
class UserModel:
    """One trained method and all that it needs to serve a user.

    Attributes:
        method: the method with its settings.
        fitted: what it learned.
        candidate: the settings that validation chose.
        baseline: [E] one Bradley-Terry model for all users, on the features themselves, that
            `evaluate` compares with.
        projection: from features to what the method works on.
        features: how texts become features.
        encoder_sha256: digest of the encoder's weights, empty for given features.
        digest: of the model's file, empty for a model that has not been saved.
        users: adapted users, if any, read one by one.
        with_prompts: whether it was trained on answers with their prompts, which the encoder then
            reads too.
        item_effects: of the items of training, which all users share; None where there are none.
        gate: which users it adapts to; all of them by default.
        reference: [R, K] differences of base rewards that the gate judges a user's support on;
            None for a method without weights.
        reference_effects: [R] differences of the effects of the same items; None for none.
        stated_scale: digest of the scale that the file of the named rewards stated, where weights
            were put on another one; empty otherwise.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm import UserModel, make_method
        >>> from jaxalign.mrm.reduce import identity
        >>> fitted = {"mean": np.zeros(2), "cov": np.eye(2)}
        >>> method = make_method("bayes")
        >>> candidate = {"strength": 1.0, "temperature": 1.0, "adapt": True}
        >>> model = UserModel(method, fitted, candidate, np.zeros(2), identity(2))
        >>> model.population()[0].tolist()
        [0.0, 0.0]
    """

    method: UserRewardMethod
    fitted: Fitted
    candidate: Candidate
    baseline: np.ndarray
    projection: Projection
    features: FeatureConfig = field(default_factory=FeatureConfig)
    encoder_sha256: str = ""
    digest: str = ""
    users: UserStore | None = None
    with_prompts: bool = False
    item_effects: KnownEffects | None = None
    gate: Gate = field(default_factory=Gate)
    reference: np.ndarray | None = None
    reference_effects: np.ndarray | None = None
    stated_scale: str = ""

    @property
    def reward_ids(self) -> RewardIds | None:
        """Names and scale of the base rewards that weights are on; None for learned ones."""
        scale, method = self.projection.scale, self.method
        named = isinstance(method, WeightsMethod) and method.on_inputs
        return scale.ids if scale is not None and named else None

    @property
    def temperature(self) -> float:
        """What the method's margins, moved by item effects, are divided by in probabilities."""
        return Calibrated(self.method).divisor_of(self.candidate)

    @property
    def scales(self) -> tuple[tuple[float, float], ...] | None:
        """Scales of the ratings that training saw; None for a model of plain choices."""
        method = self.method
        return method.scales(self.fitted) if isinstance(method, RatingsMethod) else None

    def inputs(self, features: np.ndarray) -> jax.Array:
        """Return features [..., E] as the method takes them [..., D]."""
        return jnp.asarray(self.projection.apply(features))

    def base(self, features: np.ndarray) -> np.ndarray:
        """Return base rewards [..., K] of features [..., E].

        Raises:
            InputError: the method has no base rewards.
        """
        method = weights_method(self, "base")
        return np.asarray(method.base(self.fitted, self.candidate, self.inputs(features)))

    def population(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return weights [K] and covariance [K, K] (or None) of a user without choices.

        Raises:
            InputError: the method does not represent users by weights.
        """
        return self._population

    @cached_property
    def _population(self) -> tuple[np.ndarray, np.ndarray | None]:
        size = self.base(np.zeros((1, self.projection.matrix.shape[0]))).shape[-1]
        mean, _ = infer(self, np.zeros((1, 1, size), np.float32), np.zeros((1, 1), np.float32))
        if not isinstance(self.method, PosteriorMethod):
            return mean[0], None
        return mean[0], np.asarray(self.method.prior(self.fitted, self.candidate).cov)

    def prior(self) -> Prior:
        """Return the population as the prior that `init_belief` and `next_pair` start from.

        Raises:
            InputError: the method infers no posterior.
        """
        require(self.method, "posterior", "a prior for mrm.init_belief and mrm.next_pair")
        if not isinstance(self.method, PosteriorMethod):
            raise InputError(f"{self.method.name} declares a posterior but is no PosteriorMethod.")
        return self.method.prior(self.fitted, self.candidate)


def weights_method(model: UserModel, what: str) -> WeightsMethod:
    """Return the model's method as one that represents users by weights.

    Raises:
        InputError: it does not.
    """
    require(model.method, "weights", what)
    if not isinstance(model.method, WeightsMethod):
        raise InputError(f"{model.method.name} declares weights but is no WeightsMethod.")
    return model.method


def infer(
    model: UserModel, differences: np.ndarray, mask: np.ndarray, details: RowDetails | None = None
) -> tuple[np.ndarray, Sites | None]:
    """Return users' weights, and the sites of their choices, from their choices.

    Args:
        model: whose method represents users by weights.
        differences: [U, P, K] base rewards, chosen minus rejected.
        mask: [U, P] bool or weights; a user without choices gets the population's weights.
        details: [U, P] what the rows say beyond plain choices, for a model that has `scales`; the
            differences of a rating are then the base rewards of its item.

    Returns:
        mean [U, K], and sites [U, P], or None where the method has no posterior, or with `details`,
        from which `infer_feedback` gives it.
    """
    if details is not None:
        return np.asarray(infer_feedback(model, differences, details).mean), None
    method = weights_method(model, "mrm.adapt_users")
    pairs, weight = jnp.asarray(differences), jnp.asarray(mask, jnp.float32)
    mean, sites = method.infer(model.fitted, model.candidate, pairs, weight)
    return np.asarray(mean), None if sites is None else Sites(*map(np.asarray, sites))


def infer_feedback(model: UserModel, vectors: np.ndarray, details: RowDetails) -> Inferred:
    """Return what is known of users' weights, ratings among the rows.

    Args:
        model: that has `scales`.
        vectors: [U, P, K] base rewards of rated items, or chosen minus rejected.
        details: [U, P].

    Raises:
        InputError: a model of plain choices.
    """
    require(model.method, "ratings", "ratings")
    if not isinstance(model.method, RatingsMethod):
        raise InputError(f"{model.method.name} declares ratings but is no RatingsMethod.")
    rows = jnp.asarray(vectors)
    return model.method.infer_feedback(model.fitted, model.candidate, rows, details)


def save(path: str | Path, model: UserModel) -> str:
    """Write a model as one file.

    Args:
        path: folder, made if needed; the file is FOLDER/model.safetensors.
        model: what to write; its users are not part of it (`jaxalign mrm adapt` writes those).

    Returns:
        The digest of the file.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm import UserModel, load, make_method, save
        >>> import tempfile
        >>> from jaxalign.mrm.reduce import identity
        >>> fitted = {"mean": np.zeros(2), "cov": np.eye(2)}
        >>> method = make_method("bayes")
        >>> candidate = {"strength": 1.0, "temperature": 1.0, "adapt": True}
        >>> model = UserModel(method, fitted, candidate, np.zeros(2), identity(2))
        >>> folder = tempfile.mkdtemp()
        >>> digest = save(folder, model)
        >>> loaded = load(folder)
        >>> loaded.method.name, loaded.digest == digest
        ('bayes', True)
    """
    fitted, candidate = model.method.save(model.fitted, model.candidate)
    projection = {"matrix": model.projection.matrix, "mean": model.projection.mean}
    scale = model.projection.scale
    about = AboutUserModel(
        model.method.name,
        asdict(model.method.settings),
        candidate,
        replace(model.features, model=stated_name(model.features.model)),
        model.encoder_sha256,
        None if scale is None else scale.to_json(),
        model.with_prompts,
        model.gate,
        model.stated_scale,
    )
    arrays: Fitted = {
        "fitted": fitted,
        "projection": projection,
        "baseline": model.baseline,
    }
    if model.item_effects is not None:
        known = model.item_effects
        arrays["item_effects"] = {"keys": known.keys, "values": known.values}
    for name in ("reference", "reference_effects"):
        array = getattr(model, name)
        if array is not None:
            arrays[name] = array
    return save_artifact(Path(path) / MODEL_FILE, KIND, about, arrays)


def load(path: str | Path, with_users: bool = True) -> UserModel:
    """Read a model from the folder of a finished run, or from a folder that holds a model alone.

    Args:
        path: of the folder.
        with_users: whether the users that `jaxalign mrm adapt` left there as users.sqlite come
            along. Without them their file is not read, so that users who were adapted with
            another model can be adapted anew.

    Raises:
        InputError: there is none, the run is not finished, or the file is of an older format.

    Example:
        >>> from jaxalign.errors import InputError
        >>> from jaxalign.mrm import load
        >>> try:
        ...     load("nowhere")
        ... except InputError as error:
        ...     print(str(error).partition(":")[0])
        nowhere holds no trained model (model.safetensors is missing)
    """
    folder = expand_user(path)
    if (folder / "model" / "model.json").exists() or (folder / "model.json").exists():
        raise InputError(f"{path}: holds a model of an older format: {REMEDY} anew.")
    if (folder / "run.json").exists():
        finished_report(folder, RUN_KIND, REMEDY)
    if not (folder / MODEL_FILE).exists():
        raise InputError(
            f"{path} holds no trained model ({MODEL_FILE} is missing){instead(folder)}: give the "
            "output folder of a finished `jaxalign mrm train`."
        )
    stored = load_artifact(folder / MODEL_FILE, KIND, AboutUserModel, REMEDY)
    about, arrays = stored.about, stored.arrays
    method = _method(folder / MODEL_FILE, about.method, about.settings)
    scale = None if about.scale is None else RewardScale.from_json(about.scale, str(folder))
    model = UserModel(
        method=method,
        fitted=method.load(subtree(arrays, "fitted")),
        candidate=about.candidate,
        baseline=arrays["baseline"],
        projection=Projection(arrays["projection/matrix"], arrays["projection/mean"], scale),
        features=about.features,
        encoder_sha256=about.encoder_sha256,
        with_prompts=about.with_prompts,
        item_effects=_effects(subtree(arrays, "item_effects")),
        gate=about.gate,
        reference=arrays.get("reference"),
        reference_effects=arrays.get("reference_effects"),
        stated_scale=about.stated_scale,
        digest=stored.digest,
    )
    adapted = folder / USERS_FILE
    if not with_users or not adapted.exists():
        return model
    return replace(model, users=open_users(adapted, model.digest))


def _effects(arrays: Arrays) -> KnownEffects | None:
    if not arrays:
        return None
    return KnownEffects(np.asarray(arrays["keys"]), np.asarray(arrays["values"]))


def _method(path: Path, name: str, settings: Mapping[str, object]) -> UserRewardMethod:
    from pydantic import TypeAdapter, ValidationError  # models in memory do not need it

    kind = type(make_method(name).settings) if name in METHODS else None
    if kind is None:
        raise InputError(
            f"{path}: holds a model of the method {name!r}, which is not registered here; import "
            "the module that registers it, or train again."
        )
    try:
        read = TypeAdapter(kind).validate_json(json.dumps(settings), strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path}: the setting {where} cannot be used ({first['msg']}): {REMEDY} anew."
        ) from None
    return make_method(name, read)
