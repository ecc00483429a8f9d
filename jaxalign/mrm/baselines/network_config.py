"""What can be set of the peers that are networks: VPL and GPO."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EpisodeConfig:
    """Training on episodes.

    Attributes:
        learning_rate: peak rate of AdamW; 5 % warm-up, then half a cosine.
        weight_decay: of AdamW, on kernels.
        users_per_batch: users in a step.
        epochs: passes over the users.
        snapshots: moments of training, evenly spaced, that validation may choose from.
        most_support: a training episode shows 0 to so many choices.
        most_query: and asks at most so many.
        query_share: share of a user's groups that an episode asks about.
    """

    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    users_per_batch: int = 50
    epochs: int = 100
    snapshots: int = 10
    most_support: int = 20
    most_query: int = 40
    query_share: float = 0.5


@dataclass(frozen=True)
class VPLConfig(EpisodeConfig):
    """Variational preference learning.

    Attributes:
        latent: width Z of a user's latent.
        hidden: width H of the encoder and of the reward network.
        kl_weight: weight of the divergence in the bound, once annealed; 1 is the bound itself.
        kl_anneal: share of training over which that weight rises from 0.
        draws: draws of the latent that a prediction averages over; 0 takes its mean.
    """

    latent: int = 16
    hidden: int = 64
    kl_weight: float = 0.003
    kl_anneal: float = 0.5
    draws: int = 8


@dataclass(frozen=True)
class GPOConfig(EpisodeConfig):
    """Group preference optimisation.

    Attributes:
        width: of the tokens.
        heads: of the attention; they share the width.
        feed_forward: hidden width of the feed-forward parts and of the head.
        layers: of the transformer.
    """

    width: int = 32
    heads: int = 2
    feed_forward: int = 64
    layers: int = 2
    most_query: int = 20
