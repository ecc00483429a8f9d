"""What can be set: the meta-learned model, hierarchical Bayes, and a whole run."""

from dataclasses import dataclass, field
from typing import Literal

from jaxalign.mrm.baselines.config import LoReConfig, MixtureConfig, NeighboursConfig, PALConfig
from jaxalign.mrm.baselines.network_config import GPOConfig, VPLConfig


@dataclass(frozen=True)
class MRMConfig:
    """Meta reward modelling; the defaults are the authors' recipe for PRISM.

    Attributes:
        hidden_sizes: widths of the base reward network; the last is K. Empty: the features are
            themselves K named base rewards.
        use_bias: biases in the base layers (linear ones cancel in differences).
        activation: between layers; the published form has none.
        input_scale: factor on the features, applied after the first matmul.
        link: "softmax" weights as published, or "signed", which can express a dislike.
        inner_steps: full-batch Adam steps on the support pairs while training.
        inner_lr: their rate; with `learn_inner_lr` only the start of one rate per step.
        eval_steps: inner steps when adapting a user after training.
        learn_inner_lr: learn the inner rates (Meta-SGD, one per step).
        second_order: differentiate through the inner loop; False is first-order MAML.
        rpo_tail: rho, the share of users held to be the hard tail.
        rpo_gamma: gamma, the softness of the tail; 0 or less is the hard form.
        rpo_scope: quantile over the "batch", as published, or over the last known losses of the
            whole "population".
        outer_lr: peak rate of the outer Adam; cosine with 5 % warm-up.
        warmup: share of the outer steps that warm up.
        clip_norm: global norm at which outer gradients are clipped.
        users_per_batch: users in an outer step; the last step of an epoch takes what is left.
        epochs: passes over the users.
        l2: decay of the base kernels towards zero, in the objective.
        query_share: share of a user's groups that serve as query in an epoch.
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
    epochs: int = 200
    l2: float = 0.0
    query_share: float = 0.9


@dataclass(frozen=True)
class BayesConfig:
    """Hierarchical Bradley-Terry by EM.

    Attributes:
        em_steps: EM iterations; validation may stop earlier on the same trajectory.
        newton_steps: damped Newton steps of each E-step, warm-started from the last.
        rank: rank kept of the covariance, None for all.
        l2: ridge of the Bradley-Terry start, on the scale of the differences.
        user_chunk: users handled at once (bounds memory at chunk * rank^2).
    """

    em_steps: int = 24
    newton_steps: int = 1
    rank: int | None = None
    l2: float = 1e-4
    user_chunk: int = 128


@dataclass(frozen=True)
class ChoiceDataConfig:
    """How choices are read.

    Attributes:
        kind: "auto" recognises the source by its files; else "jester", "ukpconvarg1" or "file".
        margin: least rating difference that makes a choice (Jester), rating points.
        pairs_per_half: choices drawn from each half of a Jester user's jokes.
        ties: whether ties are used in training (UKPConvArg1).
        max_pairs: most choices of one user used in training, 0 for all.
    """

    kind: Literal["auto", "jester", "ukpconvarg1", "file"] = "auto"
    margin: float = 3.0
    pairs_per_half: int = 40
    ties: bool = True
    max_pairs: int = 128


@dataclass(frozen=True)
class SplitConfig:
    """Who is seen, what is known, and how much of an unseen user is shown.

    Attributes:
        seed: of every split; the test users stay the same whatever the run's seeds.
        unseen_share: share of users who are test users.
        validation_share: share of the seen users who choose settings.
        query_share: share of a user's groups that are judged rather than learned from.
        support_pairs: choices of a validation or test user that are learned from (0: all).
        query_pairs: choices of such a user that are judged (0: all).
        min_support: users with fewer are dropped and counted.
        min_query: likewise.
        item_folds: folds of the new-item figures, 0 for none.
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


@dataclass(frozen=True)
class FeatureConfig:
    """What an item is to the models.

    Attributes:
        model: encoder of texts, when no feature file is given.
        pooling: "mean", "cls" or "last"; "auto" takes what the model was made for.
        path: a feature file (.npz, .npy, .safetensors) instead of an encoder.
        named: the columns are named base rewards: standardised, kept apart, never rotated.
        max_dims: principal directions kept of learned features.
        whiten: 0 keeps the features' own scale along them, 1 gives every direction the same.
    """

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    path: str = ""
    named: bool = False
    max_dims: int = 128
    whiten: float = 0.5


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


# 500 steps of rate .5 are the authors'; they choose the pull towards one reward, too.
LORE_PUBLISHED = LoReConfig(
    link="softmax", ranks=(2, 4, 8), steps=500, learning_rate=0.5, decays=(1e-2, 1e-3)
)


MethodName = Literal[
    "bt_per_user", "item_ids", "bayes", "mrm_published", "mrm",
    "mixture", "lore", "lore_published", "pal", "neighbours", "vpl", "gpo",
]  # fmt: skip


@dataclass(frozen=True)
class MRMRunConfig:
    """A whole run of `jaxalign mrm train`.

    Attributes:
        data: how choices are read.
        split: who is seen, what is known.
        features: what an item is.
        bayes: hierarchical Bayes.
        published: MRM as published.
        mrm: MRM regularised.
        mixture: mixture of Bradley-Terry models.
        lore: low-rank rewards, signed weights.
        lore_published: low-rank rewards, as published.
        pal: prototypes and ideal points.
        neighbours: nearest training users.
        vpl: amortised latent from a set of pairs.
        gpo: in-context transformer over pairs.
        methods: what is fitted and judged beside one Bradley-Terry model for all.
        fold_methods: what is fitted again in every item fold.
        seeds: initialisations and orders, averaged in the report.
        shots: numbers of choices at which accuracy is drawn.
        rates: inner rates that validation chooses from, beside no adaptation.
        em_every: EM iterations between two of which validation may choose.
        snapshots: training snapshots of MRM that validation may choose from.
        draws: of the bootstrap.
    """

    data: ChoiceDataConfig = field(default_factory=ChoiceDataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    bayes: BayesConfig = field(default_factory=BayesConfig)
    published: MRMConfig = field(default_factory=MRMConfig)
    mrm: MRMConfig = REGULARISED
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    lore: LoReConfig = field(default_factory=LoReConfig)
    lore_published: LoReConfig = LORE_PUBLISHED
    pal: PALConfig = field(default_factory=PALConfig)
    neighbours: NeighboursConfig = field(default_factory=NeighboursConfig)
    vpl: VPLConfig = field(default_factory=VPLConfig)
    gpo: GPOConfig = field(default_factory=GPOConfig)
    methods: tuple[MethodName, ...] = ("bt_per_user", "item_ids", "bayes", "mrm_published", "mrm")
    fold_methods: tuple[MethodName, ...] = ("item_ids", "bayes", "mrm")
    seeds: int = 3
    shots: tuple[int, ...] = (0, 1, 2, 5, 10, 20)
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    em_every: int = 4
    snapshots: int = 6
    draws: int = 2000
