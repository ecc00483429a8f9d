"""The files that the demo writes, and its summary on the terminal."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from jaxalign.demo import plots
from jaxalign.demo.answers import DemoAnswers
from jaxalign.demo.people import SATURATION, WITHIN, SimulatedChoices
from jaxalign.demo.portfolio import PortfolioStage
from jaxalign.demo.statistics import types_of_people
from jaxalign.demo.study import CURVE, SHOTS, DemoData, Design, Study
from jaxalign.files import write_json, write_text
from jaxalign.runs.tables import markdown_table, percent, terminal_table

_CERTAINTY = (
    "population", "rewards", "sd of weights", "95 % covers", "nll", "nll, one model",
    "nll, true taste", "calibration error %", "worse off %",
)  # fmt: skip
_COLUMNS = ("population", "rewards", "one model", "10 choices", "true taste", "gap closed", "95 %")


def write(
    out: Path,
    report: dict[str, Any],
    answers: DemoAnswers,
    plan: Design,
    worlds: dict[str, DemoData],
    studies: dict[str, dict[str, Study]],
    stage: PortfolioStage,
) -> list[str]:
    """Write all files to `out`, report.json last, and return their names."""
    lines = (json.dumps(row, ensure_ascii=False) for row in choice_rows(answers, plan, worlds))
    write_text(out / "choices.jsonl", "\n".join(lines) + "\n")
    texts = [t for t, p in zip(answers.texts, answers.prompt, strict=True) if p == plan.held_out[0]]
    write_text(out / "answers.txt", "\n".join(map(_flat, texts)) + "\n")
    images = plots.draw(out, report, plan, worlds, studies, stage)
    write_text(out / "report.md", markdown(report, answers.prompts[plan.held_out[0]], out))
    write_json(out / "report.json", report)
    return ["report.md", "report.json", *images, "choices.jsonl", "answers.txt"]


def choice_rows(
    answers: DemoAnswers, plan: Design, worlds: dict[str, DemoData]
) -> Iterator[dict[str, str]]:
    """Yield the friendly population's choices as rows of a preference file."""
    world = worlds["friendly"]
    made: list[tuple[np.ndarray, SimulatedChoices]] = [(plan.train, world.fitted)]
    for role, users in (("validation", plan.validation), ("test", plan.test)):
        made += [(users, world.support[role]), (users, world.query[role])]
    for users, choices in made:
        for user, chosen, rejected in zip(users, choices.chosen, choices.rejected, strict=True):
            for one, other in zip(chosen, rejected, strict=True):
                prompt = answers.prompt[one]
                yield {
                    "user": f"u{user:04d}",
                    "chosen": answers.texts[one],
                    "rejected": answers.texts[other],
                    "prompt": answers.prompts[prompt],
                    "group": answers.ids[prompt],
                }


def _flat(text: str) -> str:
    return " ".join(text.split())


def _short(text: str, width: int) -> str:
    text = _flat(text)
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def _share(found: dict[str, Any]) -> tuple[str, str]:
    ends = f"{percent(found['share_low'], 0)} to {percent(found['share_high'], 0)}"
    return f"{percent(found['share'], 0)} %", ends


def _accuracy_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, population in report["populations"].items():
        for kind in ("named", "learned"):
            found = population[kind]
            figures = (percent(found[key]) for key in ("one_model", "adapted", "true"))
            rows.append((name, kind, *figures, *_share(found)))
    return rows


def _correlation_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, population in report["populations"].items():
        for kind in ("named", "learned"):
            found = population[kind]
            values = ("-" if v is None else f"{v:.2f}" for v in found["correlation"].values())
            rows.append((name, kind, *values, f"{found['r_squared']:.2f}"))
    return rows


def _certainty_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, population in report["populations"].items():
        for kind in ("named", "learned"):
            found = population[kind]
            rows.append(
                (
                    name, kind, f"{found['posterior_sd']:.2f}", percent(found["coverage_95"], 0),
                    f"{found['nll']:.3f}", f"{found['nll_one_model']:.3f}",
                    f"{population['true_nll']:.3f}", percent(found["calibration_error"]),
                    percent(found["harmed"], 0),
                )
            )  # fmt: skip
    return rows


def _setting(setting: dict[str, Any]) -> str:
    words = "no adaptation"
    if setting["adapt"]:
        words = f"EM iteration {setting['em_step']}, its covariance times {setting['spread']:g}"
    if "directions_of" in setting:
        words += (
            f", {setting['dims']} principal directions ({setting['directions_of']}), whitening "
            f"{setting['whiten']:g}"
        )
    return words


def _opposites(report: dict[str, Any], width: int) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    pair = report["opposites"]["users"]
    header = ["rank"]
    for user in pair:
        dislikes = user["true"]["dislikes"]
        against = f", dislikes {dislikes} most" if dislikes else ""
        header.append(f"{user['user']}: truly likes {user['true']['likes']} most{against}")
    few, count = len(pair[0]["top"]), report["opposites"]["answers"]
    ranks = [f"{i + 1}" for i in [*range(few), *range(count - few, count)]]
    columns = [[_short(t, width) for t in user["top"] + user["bottom"]] for user in pair]
    return tuple(header), list(zip(ranks, *columns, strict=True))


def _portfolio(report: dict[str, Any]) -> str:
    """Return the section on the portfolio."""
    found = report["portfolio"]
    true, guessed = found["true_weights"], found["inferred"]
    rows: list[tuple[str, ...]] = []
    for words, part in (("true weights", true), (f"{guessed['choices']} choices", guessed)):
        for key, prompts in (("known", "built on"), ("held_out", "held out")):
            part_on = part[key]
            rows.append(
                (
                    words, prompts, str(part["users"]), f"{part_on['mean_improvement']:.2f}",
                    f"{part_on['mean_regret']:.2f}", f"{part_on['worst_regret']:.2f}",
                    percent(part_on["share_lost"]), percent(part_on["below_reference"]),
                )
            )  # fmt: skip
    header = (
        "routed on", "prompts", "users", "to be gained", "mean regret", "worst regret",
        "share lost %", "below reference %",
    )  # fmt: skip
    whole = next(g for g in found["guarantees"] if g["who"] == "signed")
    return f"""## A few policies for all users

{found["members"] - 1} policies and the reference serve the friendly population. Each policy picks \
among the answers to a prompt with probabilities proportional to exp(<w, traits> / {
        found["beta"]:g}), for a w of its own; the reference picks evenly. They were chosen from \
{found["solved"]} such policies to keep the worst loss small over all weights, likes and dislikes \
alike, whose absolute values sum to at most {found["radius"]:g}; the users were not used. Every \
user is routed to the member that is best for the user's weights; no model runs. Values are in \
logits of a choice, less {found["beta"]:g} a nat of KL; regret is the advantage of the user's own \
optimal policy.

{markdown_table(header, rows, left=2)}
Routed on true weights, no user is below the reference policy on the prompts that the portfolio \
was built on, including the {percent(found["disliking_share"], 0)} % who dislike a trait, because \
the reference is a member. Routed on {guessed["choices"]} choices, \
{percent(guessed["known"]["below_reference"], 0)} % of the test users are; their member is the \
best one with probability {guessed["probability_best"]:.2f} on average (Monte-Carlo error at most \
{guessed["probability_best_error"]:.2f} a user), and it is the one that true weights choose for \
{percent(guessed["same_member_as_true"], 0)} %. For *all* weights of that size, less is \
guaranteed than these users experience: the worst gap to any of the policies solved is \
{whole["pool"]["additive"]:.1f} logits, and to the unknown optimum at most \
{whole["optimum"]["additive"]:.1f}; report.json lists each guarantee.

![members, regions and users](portfolio.png)
"""


def _persona(report: dict[str, Any]) -> str:
    """Return the section on the persona plug."""
    found, users = report["persona"], report["users"]
    toy, words, choices = found["toy"], found["accuracy"], found["choices"]
    rows: list[tuple[str, ...]] = [
        (label, percent(words[key]["mean"]), _between(words[key]))
        for key, label in (
            ("persona", "the user's own persona"),
            ("another", "persona of another user"),
            ("task", "task token alone, no history"),
            ("most_frequent", "most frequent answer"),
        )
    ]
    gains = found["gain"]
    inferred = " and ".join(
        f"{percent(value, 0)} % ({kind} rewards)"
        for kind, value in found["by_inferred_weights"].items()
    )
    return f"""## One token for a language model

A frozen decoder continues "{found["prompt"]}" for each of the {users["test"]} test users of the \
friendly population. The right answer is the trait with the largest true weight. Before the prompt \
stand a task token, the same for all users, and a persona: one soft token, the mean of a trained \
projection of the {
        choices["judge"]
    } answers that the user chose on known prompts. It is trained through the decoder on the \
choices of {users["train"]} training users ({found["trained_parameters"]:,} \
parameters, {found["epochs"]} epochs). **The decoder is a toy**: {toy["layers"]} layers of width \
{toy["width"]}, {toy["vocabulary"]} words, trained by the demo to repeat the word in the \
second place ({percent(toy["repeats"], 0)} % right); `jaxalign pplug` trains plugs for real models.

{markdown_table(("persona", "named right %", "95 %"), rows)}
The persona names {percent(gains["task"]["mean"])} points more than the task token, trained for \
as many steps without any history (95 %: {_between(gains["task"])}), and \
{percent(gains["another"]["mean"])} more than the personas of the other users (95 %: \
{_between(gains["another"])}). To compare: the largest of the weights inferred above, from {
        report["choices"]["adapt"]
    } choices with what was rejected, is the right one for {inferred}. Intervals: bootstrap over \
users; one toy and one training.
"""


def _between(found: dict[str, float]) -> str:
    return f"{percent(found['low'])} to {percent(found['high'])}"


def markdown(report: dict[str, Any], shown_prompt: str, out: Path) -> str:
    """Return the report as Markdown."""
    answers, users, choices = report["answers"], report["users"], report["choices"]
    friendly, other = report["populations"]["friendly"], report["populations"]["misspecified"]
    targets = [
        f"{kind} rewards {_share(friendly[kind])[0]} (target {percent(target['share'], 0)} %: "
        f"{'reached' if target['reached'] else 'missed'})"
        for kind, target in report["targets"].items()
    ]
    kinds = [
        (row["type"], f"{100 * row['share']:.0f} %", *(f"{row[n]:+.1f}" for n in traits))
        for row in types_of_people()
        for traits in [report["rewards"]["names"]]
    ]
    header, rows = _opposites(report, 160)
    traits = tuple(report["rewards"]["names"])
    closed = "; ".join(targets)
    over_best = friendly["learned"]["share_over_best_floor"]
    return f"""# Ten choices per user: the demo of jaxalign

The answers are real: {answers["written_by"] or "a language model"} wrote {answers["distinct"]:,} \
different ones to {answers["prompts"]} prompts. **The people are simulated**, all \
{sum(users.values())} of them, so that their true weights are known; no choice was made by a \
person. Seed {report["seed"]}.

**Share of the gap closed** between no adaptation and true weights, after {
        choices["adapt"]
    } choices \
per unseen user, on unseen prompts, friendly population: {closed}.

![share of the gap closed](gap.png)

## Accuracy

{markdown_table(_COLUMNS, _accuracy_rows(report), left=2)}
Accuracy in %, over {users["test"]} test users with up to {
        choices["judge"]
    } pairs each, of answers \
to {answers["held_out_prompts"]} held-out prompts. It is *expected* accuracy: how often the \
prediction would agree with a new choice of the user, computed from the simulated choice \
probabilities, without the noise of the drawn choices (report.json has the accuracy on drawn \
choices too). *One model*: one Bradley-Terry model for all, on the same rewards, without \
adaptation; above the better of the two such models learned rewards close \
{percent(over_best, 0)} % of the gap in the friendly population. *True taste*: the user's own \
utility; noise keeps it below 100. Intervals: bootstrap over users.

![accuracy by number of choices](choices_seen.png)

Settings were chosen for {choices["adapt"]} choices; the curve goes from 0 to {
        max(CURVE)
    } with the \
same model.

## The simulated users

Users are drawn from {
        len(kinds)
    } types; a user's weights are normal around the type's, with standard deviation \
{WITHIN:g}. Negative weights are dislikes: {percent(friendly["disliked_share"], 0)} % of the test \
users' true weights are.

{markdown_table(("type", "share", *traits), kinds, left=2)}
- **friendly**: linear taste, Bradley-Terry choices, the class the model assumes. A user's own \
true weights predict {percent(friendly["true_accuracy"])} % of the choices.
- **misspecified**, on purpose: a trait z is worth {SATURATION:g} tanh(z), \
{100 * other["lapses"]:.0f} % of the choices are random, and the answer shown first is \
favoured by {
        other[
            "position_bias"
        ]:g} logits, which no model represents. There the true weights predict \
{percent(other["true_accuracy"])} %.

{users["train"]} training users made {choices["train"]} choices each, {users["validation"]} \
validation users chose the settings (no adaptation was among the candidates), {users["test"]} test \
users were judged once. What validation chose, friendly: named: \
{_setting(friendly["named"]["setting"])}; learned: {_setting(friendly["learned"]["setting"])}. \
Misspecified: named: {_setting(other["named"]["setting"])}; learned: \
{_setting(other["learned"]["setting"])}.

## Inferred weights

Correlation over test users between inferred and true weights, per trait and pooled. Learned \
rewards have no names: each user's learned reward function is projected on the named traits over \
the held-out answers, and R² says how much of it they explain (mean over users). Projected weights \
cannot be better than that.

{
        markdown_table(
            ("population", "rewards", *traits, "pooled", "R²"), _correlation_rows(report), left=2
        )
    }
![inferred against true weights](weights.png)

## Uncertainty

{markdown_table(_CERTAINTY, _certainty_rows(report), left=2)}
*sd of weights*: mean posterior standard deviation after {SHOTS} choices. *95 % covers*: share of \
true weights, in %, inside their 95 % intervals. For learned rewards these are intervals of the \
projection, which ignore what the projection leaves out; in the misspecified population the \
true weights belong to saturated traits, so that the intervals are for another quantity. *nll*: \
negative log-likelihood of drawn choices, in nats. *Worse off*: users whose expected \
accuracy is below that of one model for all.

![reliability, friendly population](reliability.png)

## Two users, the same answers

Of the friendly test users with the longer inferred weights, the two whose weights (named rewards) \
are most opposed, on the held-out prompt where they disagree most (correlation of their scores \
{report["opposites"]["correlation"]:.2f}). Prompt: *{_flat(report["opposites"]["prompt"])}*

{markdown_table(header, rows, left=3)}
{_portfolio(report)}
{_persona(report)}
## Next steps

`choices.jsonl` holds the friendly population's choices; `answers.txt`, the answers to \
"{_flat(shown_prompt)}", is for `jaxalign mrm rank`.

```
jaxalign mrm train --data {out / "choices.jsonl"} --out runs/first
```

Named rewards: {
        ", ".join(traits)
    }, by rule (`jaxalign.rewards.rules`), standardised on all answers; \
digest of the scale `{report["rewards"]["digest"]}`. Encoder: {report["encoder"]["name"]}, \
sha256 `{report["encoder"]["sha256"]}`; learned rewards never read the traits.
"""


def show(report: dict[str, Any], out: Path, written: list[str]) -> None:
    """Print the accuracies, the two rankings and the names of the files."""
    console = Console(highlight=False)
    users = report["users"]
    console.print(
        f"\n[bold]Expected accuracy in %[/bold], {users['test']} unseen [bold]simulated[/bold] "
        f"users after {SHOTS} choices, on prompts nobody chose on"
    )
    console.print(terminal_table(_COLUMNS, _accuracy_rows(report), left=2))
    for kind, target in report["targets"].items():
        word = "reached" if target["reached"] else "[red]missed[/red]"
        console.print(f"{kind} rewards: target {percent(target['share'], 0)} % of the gap {word}")
    served = report["portfolio"]
    console.print(
        f"portfolio of {served['members'] - 1} policies and the reference: loses "
        f"{percent(served['true_weights']['held_out']['share_lost'], 0)} % of what users could "
        f"gain, {percent(served['inferred']['held_out']['share_lost'], 0)} % routed on {SHOTS} "
        "choices (held-out prompts)"
    )
    named = {key: percent(one["mean"], 0) for key, one in report["persona"]["accuracy"].items()}
    console.print(
        f"persona, one soft token before a frozen toy model: it names what the user likes most for "
        f"{named['persona']} % (persona of another {named['another']} %, task token alone "
        f"{named['task']} %)"
    )
    console.print(
        f"\n[bold]Two simulated users, the same answers[/bold] to "
        f"“{escape(_flat(report['opposites']['prompt']))}”"
    )
    header, rows = _opposites(report, 70)
    for column, title in enumerate(header[1:], start=1):
        console.print(f"\n{title}", markup=False)
        for row in rows:
            console.print(f"  {row[0]:>4}  {row[column]}", markup=False, overflow="ellipsis",
                          no_wrap=True)  # fmt: skip
    console.print(f"\nWritten to {out}: {', '.join(written)}", markup=False, soft_wrap=True)
    console.print(f"Go on with: jaxalign mrm train --data {out / 'choices.jsonl'} --out runs/first",
                  markup=False, soft_wrap=True)  # fmt: skip
