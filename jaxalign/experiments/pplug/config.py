"""Configuration of a PPlug experiment: data, trainings, retrieval and evaluation."""

from dataclasses import dataclass, field, replace
from typing import Literal

from jaxalign.config import on_resume
from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.experiments.pplug.baselines import METHODS, RATING_METHODS, TRAININGS
from jaxalign.experiments.pplug.data import HistoryDataConfig
from jaxalign.pplug.config import PPlugConfig, TextConfig


@dataclass(frozen=True)
@checks_fields
class RetrievalConfig:
    """Retrieved items, for the methods that put items of the user into the prompt.

    Attributes:
        count: Largest number of items per prompt, and per persona of the top items; at least 1.
        prompt_tokens: Length limit in tokens of a prompt with items, at least 1. Null uses
            `text.prompt_tokens`, as published; raise it if items crowd out the question.
    """

    count: int = 4
    prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("count", "prompt_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"retrieval.{name} is {value}; expected at least 1.")


@dataclass(frozen=True)
@checks_fields
class PPlugEvaluateConfig:
    """How methods are evaluated; all methods see the same samples.

    Attributes:
        methods: Names of the methods to evaluate, such as "persona of another"; empty for all whose
            training is finished. More of them can be evaluated later, with --resume.
        split: Part of the data, `validation`, `test`, or `test_new` for new items where the data
            have them.
        samples: Largest number of samples, drawn evenly over users, at least 2; null for all.
        batch_size: Number of answers generated per batch, at least 1; lower it, with --resume, if
            memory runs out. It changes no more than the rounding of their probabilities.
        max_tokens: Length limit of an answer in tokens, at least 1; null for text.answer_tokens.
        temperature: Sampling temperature, at least 0; 0 decodes greedily.
        draws: Bootstrap resamples of the users, at least 2.
        seed: Seed of sampling and of the bootstrap, at least 0.
    """

    methods: tuple[str, ...] = on_resume("any", ())
    split: Literal["validation", "test", "test_new"] = "test"
    samples: int | None = None
    batch_size: int = on_resume("any", 16)
    max_tokens: int | None = None
    temperature: float = 0.0
    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        known = (*METHODS, *RATING_METHODS)
        if unknown := [name for name in self.methods if name not in known]:
            raise InputError(
                f"evaluate.methods names {unknown[0]!r}; expected some of {', '.join(known)}."
            )
        least = {"samples": 2, "batch_size": 1, "max_tokens": 1, "temperature": 0, "draws": 2}
        for name, bound in {**least, "seed": 0}.items():
            value = getattr(self, name)
            if value is not None and not bound <= value < float("inf"):
                raise InputError(f"evaluate.{name} is {value}; expected at least {bound}.")


@dataclass(frozen=True)
@checks_fields
class PPlugRunConfig:
    """Settings of a run: the data, the trainings, and how all methods are evaluated.

    Attributes:
        data: Which samples are used.
        pplug: Settings of each training; the seed of its loop is replaced by those below.
        trainings: Names of the trainings, some of pplug, task, input, shuffled, mean,
            pplug_retrieval, task_retrieval. `--baselines` trains all of them.
        seeds: Seeds of the training `pplug`, each at least 0; give three or more to see how much
            seeds differ.
        baseline_seeds: Seeds of every other training; null for the same.
        retrieval: Retrieved items in prompts.
        evaluate: How methods are evaluated.
    """

    data: HistoryDataConfig = field(default_factory=HistoryDataConfig)
    pplug: PPlugConfig = field(default_factory=PPlugConfig)
    trainings: tuple[str, ...] = ("pplug",)
    seeds: tuple[int, ...] = (0,)
    baseline_seeds: tuple[int, ...] | None = None
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    evaluate: PPlugEvaluateConfig = field(default_factory=PPlugEvaluateConfig)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.trainings if name not in TRAININGS]:
            raise InputError(
                f"trainings names {unknown[0]!r}; expected some of {', '.join(TRAININGS)}."
            )
        for name in ("trainings", "seeds", "baseline_seeds"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise InputError(f"{name} are {[*values]}; expected at least one, each once.")
        if min((*self.seeds, *(self.baseline_seeds or ()))) < 0:
            raise InputError("seeds and baseline_seeds: expected numbers of at least 0.")

    @property
    def schedule(self) -> tuple[tuple[str, int], ...]:
        """(name, seed) of each training, in the order in which they are done."""
        others = self.seeds if self.baseline_seeds is None else self.baseline_seeds
        return tuple(
            (name, seed)
            for name in sorted(self.trainings, key=list(TRAININGS).index)
            for seed in (self.seeds if name == "pplug" else others)
        )

    def text(self, retrieval: bool) -> TextConfig:
        """Return the text settings of prompts with retrieved items or without."""
        most = self.retrieval.prompt_tokens
        if not retrieval or most is None:
            return self.pplug.text
        return replace(self.pplug.text, prompt_tokens=most)

    def training(self, name: str, seed: int) -> PPlugConfig:
        """Return the settings of the training of that name in `TRAININGS`."""
        spec = TRAININGS[name]
        return replace(
            self.pplug,
            persona=spec.persona(self.pplug.persona),
            text=self.text(spec.retriever is not None),
            loop=replace(self.pplug.loop, seed=seed),
        )
