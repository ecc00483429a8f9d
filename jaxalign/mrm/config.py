"""Settings of MRM and hierarchical Bayes, and of how choices are read and split."""

import math
from dataclasses import dataclass
from typing import Literal

from jaxalign.config import on_resume
from jaxalign.config_fields import checks_fields
from jaxalign.data.bad_rows import OnBadRow
from jaxalign.errors import InputError


def check_range(
    config: object,
    names: str,
    least: float,
    most: float = math.inf,
    above: bool = False,
    below: bool = False,
) -> None:
    """Refuse settings that nothing can be fitted with, before any work is done.

    Args:
        config: whose fields are checked; a tuple holds one number or more, each in the range.
        names: of the fields, separated by spaces.
        least: smallest number.
        most: largest number.
        above: whether `least` itself is outside the range.
        below: whether `most` itself is.

    Raises:
        InputError: a number is outside the range, or a tuple is empty.

    Example:
        >>> from jaxalign.errors import InputError
        >>> from jaxalign.mrm.config import BayesConfig
        >>> try:
        ...     BayesConfig(em_steps=0)
        ... except InputError as error:
        ...     print(error)
        Bayes em_steps is 0; expected 1 or more.
    """
    for name in names.split():
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        low = f"above {least:g}" if above else f"{least:g} or more"
        high = f"below {most:g}" if below else f"{most:g} or less"
        bounds = low if most == math.inf else f"{low}, and {high}"
        # Numbers of a sweep are traced: nothing is known of them here.
        known = [number for number in values if isinstance(number, int | float)]
        ends = {least} if above else set()
        ends |= {most} if below else set()
        inside = (least <= number <= most and number not in ends for number in known)
        if not values or not all(inside):
            found = list(values) if isinstance(value, tuple) else value
            kind = type(config).__name__.removesuffix("Config")
            each = "one number or more, each " if isinstance(value, tuple) else ""
            raise InputError(f"{kind} {name} is {found}; expected {each}{bounds}.")


@dataclass(frozen=True)
@checks_fields
class MRMConfig:
    """Meta reward modelling (arXiv 2601.18731); the defaults are the authors' recipe for PRISM.

    Attributes:
        hidden_sizes: widths of the layers of the base reward network; the last one is K, the number
            of base rewards (2 as published, 8 regularised). Empty: the features are themselves K
            named base rewards.
        use_bias: whether the layers have biases; they cancel where all layers are linear.
        activation: between the layers, "linear" as published, "tanh" or "gelu".
        input_scale: factor on the features, above 0: 0.01 for the authors' features of a reward
            model, 1 for features of length 1.
        link: "softmax" weights as published, or "signed" weights, which can express a dislike.
        inner_steps: full-batch Adam steps on a user's support pairs in training, 1 or more.
        inner_lr: rate of those steps, above 0; with `learn_inner_lr` the start of the rates.
        eval_steps: inner steps when a user is adapted after training, 0 or more.
        learn_inner_lr: whether to learn the inner rates, one per step (Meta-SGD).
        second_order: whether to differentiate through the inner loop; false is first-order MAML.
        rpo_tail: rho, the share of users that counts as the hard tail, in (0, 1].
        rpo_gamma: gamma, the softness of the tail; 0 or less is the hard form.
        rpo_scope: users over whom the quantile is taken: the "batch", as published, or the whole
            "population" by each user's last known loss.
        outer_lr: peak rate of the outer Adam, above 0; cosine decay after the warm-up.
        warmup: share of the outer steps over which the rate rises from 0, in [0, 1].
        clip_norm: global norm at which outer gradients are clipped, above 0.
        users_per_batch: users per outer step, 1 or more; the last step of an epoch takes what is
            left.
        epochs: passes over the training users, 1 or more. A finished run can be resumed with more:
            training goes on from its last epoch, at the rate of the longer schedule.
        l2: weight decay of the base reward network in the objective, 0 or more.
        query_share: share of a user's groups that are query pairs in an epoch, in (0, 1).
        snapshots: moments of training, evenly spaced, that validation chooses from, 1 or more.
        rates: inner rates that validation chooses from beside no adaptation; `mrm_published`
            keeps `inner_lr`.

    Example:
        >>> from jaxalign.mrm import MRMConfig
        >>> MRMConfig(hidden_sizes=(8,), link="signed", input_scale=1.0).inner_lr
        0.001
    """

    hidden_sizes: tuple[int, ...] = (2,)
    use_bias: bool = False
    activation: Literal["linear", "tanh", "gelu"] = "linear"
    input_scale: float = 0.01
    link: Literal["softmax", "signed"] = "softmax"
    inner_steps: int = 1
    inner_lr: float = 1e-3
    eval_steps: int = 1
    learn_inner_lr: bool = False
    second_order: bool = True
    rpo_tail: float = 0.5
    rpo_gamma: float = 0.5
    rpo_scope: Literal["batch", "population"] = "batch"
    outer_lr: float = 1e-3
    warmup: float = 0.05
    clip_norm: float = 1.0
    users_per_batch: int = 2
    epochs: int = on_resume("more", 200)
    l2: float = 0.0
    query_share: float = 0.9
    snapshots: int = 6
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)

    def __post_init__(self) -> None:
        check_range(self, "inner_steps users_per_batch epochs snapshots", 1)
        if self.hidden_sizes:
            check_range(self, "hidden_sizes", 1)
        check_range(self, "inner_lr outer_lr clip_norm input_scale rates", 0, above=True)
        check_range(self, "rpo_tail", 0, 1, above=True)
        check_range(self, "eval_steps l2", 0)
        check_range(self, "warmup query_share", 0, 1)


@dataclass(frozen=True)
@checks_fields
class BayesConfig:
    """Hierarchical Bradley-Terry: EM over the population, expectation propagation for each user.

    Attributes:
        em_steps: most EM steps, 1 or more; EM ends earlier where it gains too little.
        least_gain: log evidence per user, in nats, that three EM steps must gain to go on, above 0.
        sweeps: sweeps of expectation propagation over each user's choices per EM step, 1 or more.
        pseudo_users: users that an isotropic covariance counts for, each 0 or more: the more, the
            less directions differ in variance. Of several numbers, the one is taken under which the
            choices of held-out training users are most probable.
        strengths: factors on the covariance that validation chooses from, each above 0.
        temperatures: divisors of all margins that validation chooses from, each above 0.
        implicit_weights: how often an implicit choice (a regeneration or an edit) counts, each 0 or
            more: what validation chooses from where there are such choices.
        rank: rank of the covariance that is kept, none for all of it.
        l2: ridge of the Bradley-Terry start, relative to the mean squared difference, above 0.
        user_chunk: users per step of the E-step, 1 or more; memory grows with chunk * rank^2.

    Example:
        >>> from jaxalign.mrm import BayesConfig
        >>> BayesConfig(em_steps=12).sweeps
        2
    """

    em_steps: int = 90
    least_gain: float = 2e-5
    sweeps: int = 2
    pseudo_users: tuple[float, ...] = (0.0, 100.0, 500.0, 2000.0)
    strengths: tuple[float, ...] = (0.5, 0.7, 1.0, 1.5, 2.2)
    temperatures: tuple[float, ...] = (0.64, 0.8, 1.0, 1.25, 1.6)
    implicit_weights: tuple[float, ...] = (0.0, 0.3, 1.0)
    rank: int | None = None
    l2: float = 1e-4
    user_chunk: int = 128

    def __post_init__(self) -> None:
        check_range(self, "em_steps sweeps user_chunk rank", 1)
        check_range(self, "least_gain l2 strengths temperatures", 0, above=True)
        check_range(self, "pseudo_users implicit_weights", 0)


@dataclass(frozen=True)
@checks_fields
class ChoiceDataConfig:
    """How choices are read.

    Attributes:
        kind: what the source is: "auto" recognises it by its files, else "jester", "ukpconvarg1" or
            "file".
        margin: least difference of two ratings that makes a choice, in rating points (Jester).
        pairs_per_half: choices drawn from each half of a user's jokes, 1 or more (Jester).
        ties: whether ties are learned from.
        max_pairs: most choices per user that are learned from, 0 for all.
        on_bad_row: `refuse` a file with a row that cannot be used, or `drop` such rows, say how
            many and why, and go on; a file most of whose rows are bad is refused all the same.
    """

    kind: Literal["auto", "jester", "ukpconvarg1", "file"] = "auto"
    margin: float = 3.0
    pairs_per_half: int = 40
    ties: bool = True
    max_pairs: int = 128
    on_bad_row: OnBadRow = "refuse"

    def __post_init__(self) -> None:
        check_range(self, "pairs_per_half", 1)
        check_range(self, "max_pairs margin", 0)


@dataclass(frozen=True)
@checks_fields
class SplitConfig:
    """Which users train, validate and test, and how their choices are cut.

    Attributes:
        seed: of every split, 0 or more; the test users stay the same whatever the seeds of the
            fits.
        unseen_share: share of the users who are test users, in [0, 1).
        validation_share: share of the other users who choose settings, in [0, 1).
        query_share: share of a user's groups that the user is judged on, in (0, 1); a source that
            holds rows out decides itself.
        support_pairs: choices that a validation or test user is adapted on, 0 for all.
        query_pairs: choices that such a user is judged on, 0 for all.
        min_support: users with fewer choices to adapt on are dropped and counted.
        min_query: users with fewer choices to be judged on are dropped and counted, 1 or more.
        item_folds: folds of items for the figures on new items, 2 or more; 0 for no such figures.
    """

    seed: int = 0
    unseen_share: float = 0.5
    validation_share: float = 0.2
    query_share: float = 0.5
    support_pairs: int = 20
    query_pairs: int = 40
    min_support: int = 5
    min_query: int = 5
    item_folds: int = 10

    def __post_init__(self) -> None:
        check_range(self, "unseen_share validation_share", 0, 1, below=True)
        check_range(self, "query_share", 0, 1, above=True, below=True)
        check_range(self, "seed support_pairs query_pairs min_support item_folds", 0)
        check_range(self, "min_query", 1)


@dataclass(frozen=True)
@checks_fields
class FeatureConfig:
    """What the features of an item are.

    Attributes:
        model: encoder of texts, a name or folder, where no feature file is given.
        pooling: "mean", "cls" or "last"; "auto" takes what the model was trained with.
        path: feature file (.npz, .npy, .safetensors), or scores of `jaxalign reward score`
            (.jsonl), to read instead of encoding texts.
        named: whether the columns of the feature file are named base rewards: they are
            standardised, kept apart and never rotated; null: where the file names its columns.
        scale: folder of another run, such as `jaxalign palm build`, or its scale.json, whose scale
            the named rewards are put on, so that weights are in that run's units; empty: the one
            that `jaxalign reward score` has written beside the scores, else estimated on the items
            of the run.
        max_dims: most principal directions that are kept of features without names.
        whiten: how far the directions are brought to one scale, from 0 (the features' own) to 1
            (all the same).
    """

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    path: str = ""
    named: bool | None = None
    scale: str = ""
    max_dims: int = 128
    whiten: float = 0.5

    def __post_init__(self) -> None:
        check_range(self, "max_dims", 1)
        check_range(self, "whiten", 0, 1)
        if self.scale and (self.named is False or not self.path):
            raise InputError(
                f"features.scale is {self.scale!r} without named base rewards; expected them in a "
                "file: add --features.path SCORES, or leave the scale out."
            )
        if self.named and not self.path:
            raise InputError(
                "features.named is true and features.path is empty; expected a file whose columns "
                "have names: add --features.path SCORES."
            )


@dataclass(frozen=True)
@checks_fields
class AdaptationConfig:
    """When a method adapts at all, and to whom.

    Attributes:
        significance: level of the one-sided paired t-test over users that adaptation must pass, in
            (0, 1]; 0.5 adapts wherever the mean is better, and 1 always.
        folds: folds of training and validation users. A method that is fitted quickly is fitted
            again without each fold, so that the test sees all of them; 0 tests on validation users
            alone, as for every other method.
        enough_users: validation users with whom the test needs no further fits, 2 or more.
        enough_for_gate: users with whom the levels of the gate need no further fits, likewise.
        kept_gain: share of the gain in log-likelihood that the users whom the gate lets through
            must keep, in (0, 1]; the less, the more users are left alone.
        most_harmed: share of users, from 0 to 1, who may be predicted worse behind the gate. Where
            the upper 95 % limit of it is greater, more users are left alone; 1 is no limit.
        least_kept_gain: share of the gain that is kept all the same, in (0, 1].
        tolerated_harm: share of validation users, from 0 to 1, who may be predicted worse with
            adaptation without a gate: up to it, all users are adapted to. 0 sets a gate wherever
            adaptation harms any of them, and 1 never.
        reference_pairs: pairs of training choices on which the gate judges what a user's support
            says, 1 or more.

    Example:
        >>> from jaxalign.mrm.config import AdaptationConfig
        >>> AdaptationConfig(folds=0).significance
        0.05
    """

    significance: float = 0.05
    folds: int = 5
    enough_users: int = 200
    enough_for_gate: int = 2000
    kept_gain: float = 0.95
    most_harmed: float = 0.25
    least_kept_gain: float = 0.75
    tolerated_harm: float = 0.1
    reference_pairs: int = 128

    def __post_init__(self) -> None:
        check_range(self, "significance kept_gain least_kept_gain", 0, 1, above=True)
        check_range(self, "tolerated_harm most_harmed", 0, 1)
        check_range(self, "enough_users enough_for_gate", 2)
        check_range(self, "reference_pairs", 1)
        check_range(self, "folds", 0)


REGULARISED = MRMConfig(
    hidden_sizes=(8,),
    link="signed",
    input_scale=1.0,
    inner_steps=3,
    inner_lr=0.1,
    eval_steps=10,
    outer_lr=5e-3,
    users_per_batch=50,
    epochs=60,
    query_share=0.5,
    l2=1e-3,
)
