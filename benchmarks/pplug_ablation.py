"""Which settings of a persona matter: order x centring x wording x mean or attention, on Jester.

All cells are trained with one seed and the same samples, and judged on the same new jokes by the
persona's loss and by what another person's persona costs more. A stopped benchmark goes on where it
stopped: trainings and evaluations that are finished are kept in --work.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple, TypedDict

from benchmarks import harness
from jaxalign.config import load_config
from jaxalign.experiments.pplug import evaluate
from jaxalign.experiments.pplug import run as train_plugs
from jaxalign.experiments.pplug.config import PPlugRunConfig
from jaxalign.experiments.pplug.statistics import LABEL_LOSS, Gain
from jaxalign.files import write_json, write_text
from jaxalign.pplug.config import Place
from jaxalign.progress import Progress
from jaxalign.runs.run_dir import REPORT
from jaxalign.runs.tables import MISSING, markdown_table

PRESET = Path(__file__).parents[1] / "configs" / "pplug" / "jester.yaml"
MODEL, ENCODER = "SmolLM2-135M-Instruct", "all-MiniLM-L6-v2"
OWN, OTHER = "persona", "persona of another"
WORDINGS = {"words": "", "number": "{text} rating: {rating}"}
"""Templates of an item: the task's own, with the rating as a verb, and the published form."""
_ENCODER_RATE = 1e-5  # of an encoder that is trained already; the projection starts fresh


class Cell(NamedTuple):
    """One combination of settings."""

    place: Place
    centre: bool
    wording: str
    mean: bool

    @property
    def name(self) -> str:
        """Name of the cell's folder and of its row."""
        centred = "centred" if self.centre else "raw"
        return f"{self.place}-{centred}-{self.wording}-{'mean' if self.mean else 'attention'}"


class CellResult(TypedDict):
    """What a cell reaches.

    Attributes:
        loss: Of the own persona, in nats per answer.
        over_another: What the own persona adds to the loss of another person's.
        accuracy: Share of right labels with the own persona.
    """

    loss: float
    over_another: Gain
    accuracy: float


def cells() -> Iterator[Cell]:
    """Yield all cells, those that cost little first."""
    places: tuple[Place, ...] = ("after", "before")
    for place, mean, wording, centre in product(places, (True, False), WORDINGS, (True, False)):
        yield Cell(place, centre, wording, mean)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--data", type=Path, required=True, help="folder of Jester")
    parser.add_argument("--work", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--samples", type=int, default=960, help="training samples of each cell")
    parser.add_argument("--judged", type=int, default=400, help="answers that are judged")
    parser.add_argument(
        "--cells", nargs="+", choices=[cell.name for cell in cells()], help="only these (all)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Train and judge the cells that are not finished yet, and write one table."""
    wanted = [cell for cell in cells() if not arguments.cells or cell.name in arguments.cells]
    result = harness.started("pplug_ablation", "float32")
    result["settings"] = {"samples": arguments.samples, "judged": arguments.judged}
    found: dict[str, CellResult] = {}
    for number, cell in enumerate(wanted, 1):
        Progress().say(f"cell {number} of {len(wanted)}: {cell.name}")
        found[cell.name] = judged(cell, arguments)
        result["cells"] = found
        write_json(arguments.out / "result.json", result)
    page = table(found)
    write_text(arguments.out / "report.md", page)
    print(page)
    return 0


def cell_config(cell: Cell, samples: int, judged: int) -> PPlugRunConfig:
    """Return the settings of a cell: the preset's but for what the cell varies.

    Args:
        cell: The cell.
        samples: Number of training samples.
        judged: Number of answers that are judged.
    """
    preset = load_config(PPlugRunConfig, PRESET, [])
    plug = preset.pplug
    persona = replace(plug.persona, mean=cell.mean, centre=cell.centre, place=cell.place)
    return replace(
        preset,
        data=replace(preset.data, train_samples=samples),
        pplug=replace(
            plug,
            persona=persona,
            text=replace(plug.text, item=WORDINGS[cell.wording]),
            encoder_rate=_ENCODER_RATE if persona.uses_input else None,
        ),
        trainings=("pplug",),
        seeds=(0,),
        evaluate=replace(preset.evaluate, methods=(OWN, OTHER), split="test_new", samples=judged),
    )


def judged(cell: Cell, arguments: argparse.Namespace) -> CellResult:
    """Return the result of a cell, trained and evaluated as far as it is not yet."""
    config = cell_config(cell, arguments.samples, arguments.judged)
    folder, store = arguments.work / cell.name, arguments.work / "store"
    out = folder.with_name(f"{cell.name}-judged")
    if not (folder / REPORT).exists():
        train_plugs(config, MODEL, ENCODER, arguments.data, folder, store, resume=folder.exists())
    report = evaluate(folder, out, store=store, resume=out.exists())
    if (statistics := report["statistics"]) is None:
        raise RuntimeError(f"{out} has no statistics although all answers are known")
    losses = statistics["metrics"][LABEL_LOSS]["methods"]
    return {
        "loss": losses[OWN]["mean"],
        "over_another": losses[OWN]["gains"][OTHER],
        "accuracy": statistics["scores"][OWN]["accuracy"],
    }


def table(found: dict[str, CellResult]) -> str:
    """Return a Markdown table of the cells."""
    rows = []
    for name, one in found.items():
        gain = one["over_another"]
        interval = MISSING
        if gain["low"] is not None and gain["high"] is not None:
            interval = f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
        rows.append([*name.split("-"), f"{one['loss']:.3f}", interval])
    head = ["place", "items", "rating", "sum", "loss", "over another's persona (95 %)"]
    return markdown_table(head, rows, left=4)
