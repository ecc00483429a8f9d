"""What can be set of the peers: the methods that MRM and hierarchical Bayes are compared with."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MixtureConfig:
    """Mixture of Bradley-Terry models, by EM.

    Attributes:
        components: numbers of components that validation chooses from.
        em_steps: EM iterations, each with one step of every component's regression.
        l2: ridge of every component, on the scale of the differences.
        clustering_steps: of k-means over users' scores, where EM starts from.
    """

    components: tuple[int, ...] = (2, 4, 8, 16)
    em_steps: int = 30
    l2: float = 1e-4
    clustering_steps: int = 10


@dataclass(frozen=True)
class LoReConfig:
    """Low-rank reward modelling.

    Attributes:
        link: "signed" weights with a mean and a Gaussian prior, or "softmax" as published.
        ranks: numbers of basis rewards that validation chooses from.
        steps: of Adam on basis and weights together.
        learning_rate: its rate.
        decays: strengths, of the ridge on the basis ("signed"), or of the pull of every basis
            reward towards one Bradley-Terry model ("softmax"), that validation chooses from.
        few_shot_rate: rate of the Adam steps that fit a new user's softmax weights.
        few_shot_steps: how many there are.
    """

    link: Literal["signed", "softmax"] = "signed"
    ranks: tuple[int, ...] = (2, 4, 8, 16)
    steps: int = 300
    learning_rate: float = 0.03
    decays: tuple[float, ...] = (1e-3, 1e-4)
    few_shot_rate: float = 0.1
    few_shot_steps: int = 500


@dataclass(frozen=True)
class PALConfig:
    """Prototypes and ideal points.

    Attributes:
        prototypes: their numbers that validation chooses from.
        width: of the latent space.
        steps: of Adam on map, prototypes and user weights together.
        learning_rate: its rate.
        decay: of map and prototypes towards zero.
        few_shot_rate: rate of the Adam steps that fit a new user's weights.
        few_shot_steps: how many; validation chooses from these, beside none.
        snapshots: moments of training that validation chooses from.
    """

    prototypes: tuple[int, ...] = (2, 4, 8)
    width: int = 16
    steps: int = 200
    learning_rate: float = 0.03
    decay: float = 1e-4
    few_shot_rate: float = 0.1
    few_shot_steps: tuple[int, ...] = (1, 2, 4, 10, 30)
    snapshots: int = 5


@dataclass(frozen=True)
class NeighboursConfig:
    """Nearest training users.

    Attributes:
        counts: numbers of neighbours that validation chooses from.
        shares: how far to go from the population towards their mean; 1 is all the way.
        spread: standard deviation over users that a typical pair's reward is taken to have, when
            the training users' own weights are fitted.
    """

    counts: tuple[int, ...] = (10, 40, 160)
    shares: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
    spread: float = 1.0
