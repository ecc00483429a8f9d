"""Supervised fine-tuning of a language model on a file, into a folder."""

from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from jaxalign.data.completions import Completions, load_completions
from jaxalign.data.splits import hold_out_rows
from jaxalign.experiments.training_run import start_training
from jaxalign.models.global_arrays import to_host
from jaxalign.models.language import LanguageModel, describe, save_language_model
from jaxalign.models.params import PyTree
from jaxalign.models.peft import save_adapter
from jaxalign.models.resolve import resolve
from jaxalign.progress import counted
from jaxalign.runs.processes import on_first_process
from jaxalign.train.mesh import DeviceReport
from jaxalign.train.sft import SftConfig, check_run, train


class SftReport(TypedDict):
    """What `run` writes into report.json.

    Attributes:
        rows: how many were trained on.
        validation_rows: how many were validated on.
        truncated: rows whose end was cut off.
        dropped: rows left out, as unusable or since nothing to learn was left of them.
        notes: what was unusable, and why.
        steps: steps taken.
        best_step: the step that the model is of.
        validation_before: loss in nats per token before the first step; empty without validation.
        validation: the same at the best step.
        devices: what the model was trained on.
    """

    rows: int
    validation_rows: int
    truncated: int
    dropped: int
    notes: list[str]
    steps: int
    best_step: int
    validation_before: dict[str, float]
    validation: dict[str, float]
    devices: DeviceReport


def run(
    config: SftConfig,
    name: str,
    source: str,
    out: str | Path,
    validation: str | None = None,
    resume: bool = False,
    show: bool = True,
) -> SftReport:
    """Fine-tune a model on a file and save it.

    Args:
        config: the run.
        name: of the model, as `load_language_model` takes it.
        source: completions, as `load_completions` takes them.
        out: folder: model/ (a Hugging Face or PEFT folder), report.json, metrics.jsonl, state/.
        validation: completions to judge by, in place of a share of the rows.
        resume: go on with an unfinished run in `out`, or make a run longer.
        show: progress on standard error.

    Returns:
        The report, as in report.json.

    Raises:
        InputError: a bad model, row, setting or folder.
    """
    started = start_training(
        out, "sft", config, config.trunk.mesh, config.loop.trackers, resume, show
    )
    out, progress = started.out, started.progress
    # A mistake in the rows need not wait for the weights.
    resolved = resolve(name)
    tokenizer = describe(resolved, name, config.trunk.weights).tokenizer
    completions = load_completions(source, tokenizer, config.data)
    for note in completions.notes:
        progress.say(note)
    progress.say(
        f"{counted(len(completions), 'row')}, {completions.learned.sum():,} tokens to learn, "
        f"{counted(completions.truncated, 'row')} cut, {completions.dropped:,} left out"
    )
    if validation is None:
        held = hold_out(completions, config)
    else:
        held = completions, load_completions(validation, tokenizer, config.data)
    parts = [part for part in held if part is not None]
    model = started.load_model(name, config.trunk.weights, config.trunk.unstacks, resolved)
    check_run(model, parts, config)
    arrays = [array for part in parts for array in (part.sequences.tokens, part.learned)]
    run_dir = started.open({"model": model.sha256, "data": arrays}, config.optimiser)
    fitted = train(model, *held, config, out, progress)
    params = to_host(fitted.params)
    on_first_process(lambda: _save(out / "model", model, params, config))
    report: SftReport = {
        "rows": len(held[0]),
        "validation_rows": 0 if held[1] is None else len(held[1]),
        "truncated": completions.truncated,
        "dropped": completions.dropped,
        "notes": list(completions.notes),
        "steps": fitted.steps,
        "best_step": fitted.best_step,
        "validation_before": fitted.validation_before,
        "validation": fitted.validation,
        "devices": started.devices,
    }
    run_dir.finish(report)
    return report


def _save(folder: Path, model: LanguageModel, params: PyTree, config: SftConfig) -> None:
    if config.trunk.method == "full":
        save_language_model(folder, replace(model, params=params["model"]))
    else:
        save_adapter(folder, params["adapter"], config.trunk.lora, model.name, model.config)


def hold_out(completions: Completions, config: SftConfig) -> tuple[Completions, Completions | None]:
    """Rows to train on, and a random `validation_share` of them to validate on or None."""
    if not config.validation_share or len(completions) < 2:
        return completions, None
    rows, held = hold_out_rows(len(completions), config.validation_share, config.loop.seed)
    return completions.take(rows), completions.take(held)
