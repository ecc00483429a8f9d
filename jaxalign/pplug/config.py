"""Configuration of a persona plug and of its training."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from jaxalign.config import on_resume
from jaxalign.config_fields import checks_fields
from jaxalign.data.lamp import QUERY_PREFIX
from jaxalign.errors import InputError
from jaxalign.models import families
from jaxalign.train.loop import LoopConfig
from jaxalign.train.mesh import MeshConfig
from jaxalign.train.optimiser import OptimiserConfig
from jaxalign.train.trunk import Precision, check_remat

Place = Literal["before", "after"]


@dataclass(frozen=True)
@checks_fields
class PersonaConfig:
    """The soft tokens beside a prompt; the defaults are those of the paper.

    Attributes:
        tokens: Number S of persona tokens, at least 1. With more than one, each attends to the
            history with a query of its own.
        source: What the persona is made of. `history` is the method. `input` uses the present
            input with the same parameters and no history, as a baseline. `none` leaves the task
            token alone, as a baseline.
        task: Whether the task token, which all users share, stands before the persona.
        mean: Average the items with equal weights, or with those of their age where `recency` is
            set, instead of attention. The input encoder is then neither used nor trained, and one
            persona per user serves every input.
        temperature: Scale of the attention logits. `cosine` multiplies the cosines by `sharpness`;
            `learned` trains that factor, starting at `sharpness`.
        sharpness: Factor of the cosines, above 0. With 1, as published, no item can weigh more
            than e^2 = 7.4 times another; raise it to attend more selectively.
        recency: Train how fast the weight of an item decays with the number of newer items. The
            decay starts at zero.
        centre: Subtract the mean of the training items' vectors from every item. The published
            form, false, leaves it in: the vectors of different people are then nearly the same, and
            a short training learns only what all people share.
        place: Where the soft tokens stand. `before` the prompt is the published form. `after` puts
            them behind the prompt, in a chat before the assistant's turn: the frozen model's keys
            and values of a prompt then depend on no user, and are computed once per prompt.

    Example:
        >>> from jaxalign.pplug import PersonaConfig
        >>> PersonaConfig(tokens=2).prefix_length  # a task token and two persona tokens
        3
        >>> PersonaConfig(mean=True).uses_input
        False
    """

    tokens: int = 1
    source: Literal["history", "input", "none"] = "history"
    task: bool = True
    mean: bool = False
    temperature: Literal["cosine", "learned"] = "cosine"
    sharpness: float = 1.0
    recency: bool = False
    centre: bool = False
    place: Place = "before"

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise InputError(f"persona.tokens is {self.tokens}; expected at least 1.")
        if not 0 < self.sharpness < math.inf:
            raise InputError(f"persona.sharpness is {self.sharpness}; expected a positive number.")
        if self.source == "none" and not self.task:
            raise InputError(
                "persona.source is none and persona.task is false, which leaves nothing beside the "
                "prompt; expected one of the two."
            )

    @property
    def uses_input(self) -> bool:
        """Whether the persona depends on the input, and the input encoder is trained."""
        return self.source == "input" or (self.source == "history" and not self.mean)

    @property
    def centred(self) -> bool:
        """Whether items are read, and their mean is subtracted from them."""
        return self.centre and self.source == "history"

    @property
    def prefix_length(self) -> int:
        """Number Q of soft tokens beside a prompt."""
        return int(self.task) + (0 if self.source == "none" else self.tokens)


@dataclass(frozen=True)
@checks_fields
class TextConfig:
    """Which parts of questions, answers and histories are read; the defaults are the paper's.

    Attributes:
        labels: Include the user's label of an item (a tag, a score) in the text that is encoded,
            for tasks whose item text leaves it out: in the words of the task, if it has some. Set
            it to true where the labels carry the user's taste, such as ratings.
        item: Template of the text that is encoded, used instead of the task's own: the fields of an
            item stand in braces, and {verdict} is its label in words, such as
            "I {verdict} this: {text}". Empty for the task's own.
        answers: Whether answers are `generated`, or all labels of the task are `scored` together:
            the loss is then the cross-entropy among the labels, without a stop token.
        max_items: Number of items read per history, at least 1; the newest are kept.
        query_prefix: Text before a question for the input encoder. Leave it empty for encoders
            that were trained without an instruction.
        prompt_tokens: Length limit of a question in tokens, at least 1, for the language model and
            the input encoder; longer questions lose their end.
        answer_tokens: Length limit of a generated answer in tokens, its stop token included, at
            least 1; longer answers lose their end, and with it their stop token. Labels that are
            scored have no limit.
        template: `chat` formats the question as a user turn of the model's chat template, `plain`
            as a line of its own, `auto` uses `chat` if the tokenizer has a chat template, and the
            name of one of the tokenizer's several chat templates uses that one.

    Example:
        >>> from jaxalign.pplug import TextConfig
        >>> TextConfig(max_items=0)
        Traceback (most recent call last):
        jaxalign.errors.InputError: text.max_items is 0; expected at least 1.
    """

    labels: bool = False
    item: str = ""
    answers: Literal["generated", "scored"] = "generated"
    max_items: int = 512
    query_prefix: str = QUERY_PREFIX
    prompt_tokens: int = 256
    answer_tokens: int = 128
    template: str = "auto"

    def __post_init__(self) -> None:
        for name in ("max_items", "prompt_tokens", "answer_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"text.{name} is {getattr(self, name)}; expected at least 1.")


@dataclass(frozen=True)
@checks_fields
class PPlugConfig:
    """Settings of one training; the defaults are those of the paper.

    Attributes:
        persona: The soft tokens beside a prompt.
        text: Which parts of the data are read.
        cache_gib: Most memory, in GiB, for keys and values of the training prompts with
            `persona.place: after`, at least 0. If they need more, or with 0, each step computes
            those of its own prompts, with the same result.
        copies: Extra copies per epoch of every sample with more than two items, each with a random
            part of its history left out; at least 0. Set it to 0 to train each sample once.
        drop: Share in (0, 1] of the items: a copy lacks at least one item, and at most one more
            than this share of them.
        loop: Epochs, batch size and intervals.
        optimiser: Learning rate and schedule.
        encoder_rate: Highest learning rate of the input encoder, above 0; null for that of the
            optimiser. A projection that starts fresh learns at 3e-3, an encoder that is trained
            already at 1e-5 to 1e-4.
        mean_epochs: Epochs with the plain mean of the items before those of `loop` with attention,
            at least 0. The projection then knows what items say before the encoder is trained.
            A persona without attention, such as a baseline, has as many more epochs of `loop`.
        weights: Data type of the frozen language model's parameters.
        compute: Data type of matrix products in the language model and the input encoder.
        remat: Rematerialisation policy of both models' blocks by its name in
            `jax.checkpoint_policies`, such as nothing_saveable, which saves the most memory; null
            recomputes nothing.
        mesh: Device mesh. The trained parameters are replicated on every device.

    Example:
        >>> from jaxalign.pplug import PersonaConfig, PPlugConfig
        >>> config = PPlugConfig(persona=PersonaConfig(tokens=2), copies=0)
        >>> config.optimiser.rate, config.loop.epochs
        (0.0001, 2)
    """

    persona: PersonaConfig = field(default_factory=PersonaConfig)
    text: TextConfig = field(default_factory=TextConfig)
    cache_gib: float = on_resume("any", 2.0)
    copies: int = 10
    drop: float = 0.5
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(epochs=2, batch_size=64))
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(
            rate=1e-4, schedule="linear", warmup=0.05, weight_decay=1e-4
        )
    )
    encoder_rate: float | None = None
    mean_epochs: int = 0
    weights: Precision = "bfloat16"
    compute: Precision = "bfloat16"
    remat: str | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.cache_gib < math.inf:
            raise InputError(f"cache_gib is {self.cache_gib}; expected a number of at least 0.")
        if self.copies < 0 or not 0 < self.drop <= 1:
            raise InputError(
                f"copies is {self.copies} and drop {self.drop}; expected copies of at least 0 and "
                "a share in (0, 1]."
            )
        if self.encoder_rate is not None and not 0 < self.encoder_rate < math.inf:
            raise InputError(f"encoder_rate is {self.encoder_rate}; expected a positive number.")
        if self.mean_epochs < 0:
            raise InputError(f"mean_epochs is {self.mean_epochs}; expected at least 0.")
        check_remat(self.remat)

    @property
    def staged(self) -> bool:
        """Whether the epochs of `mean_epochs` come first, with a mean in place of attention."""
        own = self.persona
        return self.mean_epochs > 0 and own.source == "history" and own.uses_input

    @property
    def with_equal_passes(self) -> "PPlugConfig":
        """The same passes over the samples in one stage, the epochs of `mean_epochs` included."""
        epochs = self.loop.epochs + self.mean_epochs
        return replace(self, loop=replace(self.loop, epochs=epochs), mean_epochs=0)

    @property
    def rates(self) -> dict[str, float]:
        """Highest learning rate of each part of the parameters that has one of its own."""
        return {} if self.encoder_rate is None else {"encoder": self.encoder_rate}

    def decoder(self, config: families.Config) -> families.Config:
        """Return the language model's config with the data type and remat policy set here."""
        return replace(config, dtype=self.compute, remat=self.remat)
