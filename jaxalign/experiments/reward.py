"""Training of a reward model on a file of choices, judged on held-out ones, into a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from jaxalign.experiments.training_run import start_training
from jaxalign.models.classifier import Classifier
from jaxalign.models.global_arrays import to_host
from jaxalign.models.language import LanguageModel
from jaxalign.progress import counted
from jaxalign.rewards.bradley_terry import (
    RewardConfig,
    check_run,
    hold_out,
    load_choices,
    pairwise_accuracy,
    tokenized_items,
    train,
)
from jaxalign.rewards.reward_model import (
    Adapted,
    adapted_model,
    reward_model,
    save_adapted,
    save_whole,
)
from jaxalign.runs.processes import on_first_process
from jaxalign.runs.run_dir import Identity
from jaxalign.train.mesh import DeviceReport
from jaxalign.train.trunk import TrainableParams


class RewardReport(TypedDict):
    """What `run` writes into report.json.

    Attributes:
        choices: how many were trained on.
        notes: what was dropped or found remarkable when the file was read, a sentence each.
        held_out_choices: how many were judged on.
        held_out_by: what was kept apart whole: `group`, `user` or `prompt`.
        labels: names of the heads.
        steps: steps taken.
        best_step: the step that the model is of.
        validation_before: loss in nats and accuracy before the first step.
        validation: the same at the best step.
        accuracy: share of the held-out choices, by head and of `all`, that the model ranks right.
        devices: what the model was trained on.
    """

    choices: int
    notes: list[str]
    held_out_choices: int
    held_out_by: str
    labels: list[str]
    steps: int
    best_step: int
    validation_before: dict[str, float]
    validation: dict[str, float]
    accuracy: dict[str, float]
    devices: DeviceReport


def run(
    config: RewardConfig,
    name: str,
    source: str,
    out: str | Path,
    resume: bool = False,
    show: bool = True,
) -> RewardReport:
    """Train a reward model on a preference file, judge it on held-out choices, and save it.

    Args:
        config: the run.
        name: of the language model to start from.
        source: choices, as `load_choices` takes them.
        out: folder: model/ (a sequence classifier, or a PEFT folder with a head), report.json,
            metrics.jsonl, state/.
        resume: go on with an unfinished run in `out`, or make a run longer.
        show: progress on standard error.

    Returns:
        The report, as in report.json.

    Raises:
        InputError: a bad model, choice, setting or folder.
    """
    started = start_training(
        out, "reward train", config, config.trunk.mesh, config.loop.trackers, resume, show
    )
    out, progress = started.out, started.progress
    choices = load_choices(source, config.on_bad_row)
    for note in choices.preferences.notes:
        progress.say(note)
    rows, kept = hold_out(choices, config.hold_out, config.hold_out_share, config.loop.seed)
    training, held = choices.take(rows), choices.take(kept) if len(kept) else None
    progress.say(
        f"{counted(len(rows), 'choice')} to learn, {len(kept):,} held out, "
        f"{len(choices.labels)} head{'s' * (len(choices.labels) > 1)}"
    )
    base = started.load_model(name, config.trunk.weights, config.trunk.unstacks)
    table = choices.preferences
    arrays = [table.chosen, table.rejected, table.tie, choices.objective, rows]
    texts = tokenized_items(base, table, config)
    check_run(base, training, texts, config, progress.say)
    identity: dict[str, Identity] = {
        "model": base.sha256,
        "choices": [*arrays, *choices.labels, *table.texts],
    }
    run_dir = started.open(identity, config.optimiser)
    fitted = train(base, texts, training, held, config, out, progress)
    model = _finished(base, choices.labels, fitted.params, config, out / "model")
    report: RewardReport = {
        "choices": len(rows),
        "notes": list(choices.preferences.notes),
        "held_out_choices": len(kept),
        "held_out_by": config.hold_out,
        "labels": list(choices.labels),
        "steps": fitted.steps,
        "best_step": fitted.best_step,
        "validation_before": fitted.validation_before,
        "validation": fitted.validation,
        "accuracy": {} if held is None else pairwise_accuracy(model, held),
        "devices": started.devices,
    }
    run_dir.finish(report)
    return report


def _finished(
    base: LanguageModel,
    labels: Sequence[str],
    params: TrainableParams,
    config: RewardConfig,
    folder: Path,
) -> Classifier:
    """The trained model, written."""
    host: TrainableParams = to_host(params)
    head = host["head"]["kernel"]
    if config.trunk.method == "full":
        whole = reward_model(base, labels, head, host["model"])
        on_first_process(lambda: save_whole(folder, whole, base.hf_config))
        return reward_model(base, labels, head, params["model"])
    adapted = Adapted(host["adapter"], config.trunk.lora, head)
    on_first_process(lambda: save_adapted(folder, base, labels, adapted))
    return adapted_model(base, labels, adapted)
