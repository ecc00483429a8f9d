"""Training of a reward model on a file of choices, judged on held-out ones, into a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.models.classifier import Classifier
from jaxalign.models.language import LanguageModel, load_language_model
from jaxalign.progress import Progress
from jaxalign.rewards.bradley_terry import (
    RewardConfig,
    hold_out,
    load_choices,
    pairwise_accuracy,
    train,
)
from jaxalign.rewards.reward_model import (
    Adapted,
    adapted_model,
    reward_model,
    save_adapted,
    save_whole,
)
from jaxalign.runs.run_dir import open_run_dir
from jaxalign.train.mesh import make_mesh, param_shardings


def run(
    config: RewardConfig,
    name: str,
    source: str,
    out: str | Path,
    resume: bool = False,
    show: bool = True,
) -> dict[str, Any]:
    """Train a reward model on a preference file, judge it on held-out choices, and save it.

    Args:
        config: the run.
        name: of the language model to start from.
        source: choices, as `load_choices` takes them.
        out: folder: model/ (a sequence classifier, or a PEFT folder with a head), report.json,
            metrics.jsonl, state/.
        resume: go on with an unfinished run in `out`.
        show: progress on standard error.

    Returns:
        The report, as in report.json.

    Raises:
        InputError: a bad model, choice, setting or folder.
    """
    out, progress = Path(out), Progress(show)
    mesh = make_mesh(config.trunk.mesh)
    base = load_language_model(
        name, config.trunk.weights, lambda shapes: param_shardings(shapes, mesh)
    )
    choices = load_choices(source)
    rows, kept = hold_out(choices, config.hold_out, config.hold_out_share, config.loop.seed)
    training, held = choices.take(rows), choices.take(kept) if len(kept) else None
    progress.say(
        f"{len(rows):,} choices to learn, {len(kept):,} held out, "
        f"{len(choices.labels)} head{'s' * (len(choices.labels) > 1)}"
    )
    table = choices.preferences
    arrays = [table.chosen, table.rejected, table.tie, choices.objective, rows]
    names = [base.sha256, *choices.labels, *table.texts]
    run_dir = open_run_dir(out, "reward train", config, arrays, names, resume)
    fitted = train(base, training, held, config, out, progress)
    model = _finished(base, choices.labels, fitted.params, config, out / "model")
    report = {
        "choices": len(rows),
        "held_out_choices": len(kept),
        "held_out_by": config.hold_out,
        "labels": list(choices.labels),
        "steps": fitted.steps,
        "best_step": fitted.best_step,
        "validation_before": fitted.validation_before,
        "validation": fitted.validation,
        "accuracy": {} if held is None else pairwise_accuracy(model, held),
    }
    run_dir.finish(report)
    return report


def _finished(
    base: LanguageModel,
    labels: Sequence[str],
    params: Mapping[str, Any],
    config: RewardConfig,
    folder: Path,
) -> Classifier:
    """The trained model, written."""
    head = params["head"]["kernel"]
    if config.trunk.method == "full":
        model = reward_model(base, labels, head, params["model"])
        save_whole(folder, model, base.hf_config)
        return model
    adapted = Adapted(params["adapter"], config.trunk.lora, head)
    save_adapted(folder, base, labels, adapted)
    return adapted_model(base, labels, adapted)
