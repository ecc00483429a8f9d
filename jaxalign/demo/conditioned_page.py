"""What the demo's page and its summary say of the policy conditioned on a preference."""

from jaxalign.demo.conditioned import POLICY, ConditionedReport
from jaxalign.demo.study import MeanInterval
from jaxalign.demo.writer import ANSWER_TOKENS
from jaxalign.experiments.moc.statistics import Estimate
from jaxalign.runs.tables import MISSING, markdown_table

_VALUES = {
    "own": POLICY,
    "shuffled": f"{POLICY}, preferences shuffled",
    "ignored": f"{POLICY}, preference ignored",
    "reference": "reference: the decoder before the training",
    "best_of": "best of {n} of the reference",
}


def page_values(found: ConditionedReport) -> dict[str, str | int]:
    """Return the texts that page.md names `preference_...`.

    Args:
        found: The stage's part of report.json.
    """
    evaluation = found["evaluation"]
    names = evaluation["rewards"]
    points = evaluation["policies"][POLICY]["points"]
    moved = [f"{_mean(one)} for {name}" for name, one in found["held_out_movement"].items()]
    beyond = {
        "shuffled": "shuffled preferences",
        "ignored": "the ignored preference",
        "best_of": f"the best of {found['best_of']}",
    }
    gains = [f"by {_mean(found['gain'][key], '+')} from {words}" for key, words in beyond.items()]
    return {
        "preference_names": " and ".join(names),
        "answer_tokens": ANSWER_TOKENS,
        "preference_prompts": evaluation["prompts"],
        "preference_points": len(points),
        "preference_held": sum(not point["seen"] for point in points),
        "preference_answers": markdown_table(*_answers(found), left=4),
        "preference_achieved": markdown_table(*_achieved(found)),
        "preference_table": markdown_table(*_policies(found)),
        "preference_movement": " and ".join(moved),
        "preference_gain": ", ".join(gains),
    }


def summary(found: ConditionedReport) -> str:
    """Return the line of the terminal."""
    moved = found["evaluation"]["policies"][POLICY]["parts"]["seen"]["movement"]
    levels = " and ".join(f"{name} {_figure(one)}" for name, one in moved.items())
    value = {key: f"{one['mean']:.2f}" for key, one in found["value"].items()}
    return (
        f"one policy of a toy decoder for every preference: from corner to corner it moves {levels}"
        f" levels; value {value['own']} (preference ignored {value['ignored']}, reference "
        f"{value['reference']}, best of {found['best_of']} of it {value['best_of']})"
    )


def _answers(found: ConditionedReport) -> tuple[list[str], list[list[str]]]:
    """The same prompts under three preferences; / stands for a new line."""
    header = ["prompt", *(_shares(found, one["preference"]) for one in found["achieved"])]
    rows = [
        [one["prompt"], *(" / ".join(text.strip().splitlines()) for text in one["answers"])]
        for one in found["shown"]
    ]
    return header, rows


def _achieved(found: ConditionedReport) -> tuple[list[str], list[list[str]]]:
    names = found["evaluation"]["rewards"]
    rows = [
        [_shares(found, one["preference"]), *(_mean(one["rewards"][name]) for name in names)]
        for one in found["achieved"]
    ]
    return ["preference", *(f"{name} (95 %)" for name in names)], rows


def _policies(found: ConditionedReport) -> tuple[list[str], list[list[str]]]:
    names = found["evaluation"]["rewards"]
    header = ["policy", *(f"tau-b {name}" for name in names)]
    header += [*(f"movement {name} (95 %)" for name in names), "value (95 %)", "KL"]
    labels = {key: label.format(n=found["best_of"]) for key, label in _VALUES.items()}
    judged = dict(
        zip(("own", "reference", "best_of"), found["evaluation"]["policies"], strict=True)
    )
    rows = []
    for key, label in labels.items():
        cells = [MISSING] * (2 * len(names))
        kl = MISSING
        if key in judged:
            parts = found["evaluation"]["policies"][judged[key]]["parts"]
            taus = [parts["held_out"]["tau"][name] for name in names]
            moved = [parts["seen"]["movement"][name] for name in names]
            cells = [MISSING if tau is None else f"{tau['value']:.2f}" for tau in taus]
            cells += [_figure(one) for one in moved]
            kl = f"{parts['seen']['kl']:.1f}"
        rows.append([label, *cells, _mean(found["value"][key]), kl])
    return header, rows


def _shares(found: ConditionedReport, preference: list[float]) -> str:
    pairs = zip(found["evaluation"]["rewards"], preference, strict=True)
    return ", ".join(f"{name} {share:.1f}" for name, share in pairs)


def _mean(found: MeanInterval, sign: str = "") -> str:
    low, high = found["low"], found["high"]
    return f"{found['mean']:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"


def _figure(found: Estimate | None) -> str:
    if found is None:
        return MISSING
    low, high = found["low"], found["high"]
    ends = "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
    return f"{found['value']:.2f}{ends}"
