"""`jaxalign demo`: one call from the shipped answers to a report."""

import json
from pathlib import Path
from typing import Any

from jaxalign.demo import report as pages
from jaxalign.demo.answers import ENCODER, encode_answers, read_answers
from jaxalign.demo.conditioned import run_conditioned
from jaxalign.demo.people import draw_people
from jaxalign.demo.plug import run_plug
from jaxalign.demo.portfolio import run_stage
from jaxalign.demo.statistics import assemble
from jaxalign.demo.study import DemoData, Study, design, learned_features, run_study, simulate
from jaxalign.errors import InputError
from jaxalign.files import check_output, expand_user, write_json
from jaxalign.progress import Progress, counted
from jaxalign.rewards.rules import TRAITS

FEWEST_USERS = 30
POPULATIONS = ("friendly", "misspecified")


def write_files(out: str | Path, users: int = 600, seed: int = 0) -> list[str]:
    """Write the shipped answers and simulated choices among them as files, and train nothing.

    Args:
        out: folder of choices.jsonl, answers.jsonl and answers.txt, as `run_demo` writes them.
        users: simulated users.
        seed: of people and choices.

    Returns:
        Names of the files.

    Raises:
        InputError: as `run_demo`.
    """
    _check(users, seed)
    claim(expand_user(out))
    answers = read_answers()
    plan = design(users, len(answers.prompts), seed)
    world = simulate(draw_people("friendly", users, seed), answers, plan, seed)
    return pages.write_data(expand_user(out), answers, plan, world)


def run_demo(
    out: str | Path = Path("demo"), users: int = 600, seed: int = 0, show: bool = True
) -> dict[str, Any]:
    """Encode, train, adapt unseen users from 10 choices, and say how well it went.

    The answers were really written by a language model; the people are simulated. Unseen users are
    judged on prompts that nobody chose on before, by named and by learned rewards. A portfolio of
    policies, the persona of a toy model and a policy conditioned on preferences follow.

    Args:
        out: folder of report.md, report.json, plots, choices.jsonl, answers.jsonl and answers.txt.
            One that holds an earlier demo is written over.
        users: simulated users, of whom two thirds are training users.
        seed: of people, choices and splits.
        show: progress on standard error and the result on standard output.

    Returns:
        The report, as in report.json.

    Raises:
        InputError: the folder holds something else, or users or seed make no sense.
    """
    out = expand_user(out)
    _check(users, seed)
    claim(out)
    progress = Progress(show)
    say = progress.say
    answers = read_answers()
    say(f"{counted(len(answers.texts), 'answer')} to {counted(len(answers.prompts), 'prompt')}")
    say(f"measuring {len(TRAITS)} traits of each by rule")
    plan = design(users, len(answers.prompts), seed)
    named = {"named": ({"rewards": list(TRAITS)}, answers.traits)}
    say(f"encoding the answers with {ENCODER.split('/')[-1]} (kept for the next time)")
    encoded, encoder = encode_answers(answers.texts, show)
    learned = learned_features(encoded, answers, plan)
    worlds: dict[str, DemoData] = {}
    studies: dict[str, dict[str, Study]] = {}
    for name in POPULATIONS:
        say(f"{users} simulated users choose ({name})")
        world = worlds[name] = simulate(draw_people(name, users, seed), answers, plan, seed)
        studies[name] = {}
        for kind, versions in (("named", named), ("learned", learned)):
            say(f"{name}: fitting {kind} rewards, choosing on validation users, judging test users")
            studies[name][kind] = run_study(versions, world, answers, plan)
    say("friendly: a small portfolio of policies, and every user routed to one of them")
    stage = run_stage(answers, plan, worlds["friendly"], studies["friendly"]["named"], seed)
    say("friendly: a frozen toy language model, conditioned on the user by one soft token")
    friendly = worlds["friendly"], studies["friendly"]
    persona = run_plug(encoded, encoder, answers, plan, *friendly, seed)
    say("a small decoder learns the shipped answers, then one policy for every preference")
    conditioned = run_conditioned(answers, plan, seed, progress)
    say("writing the report")
    report = assemble(answers, plan, worlds, studies, seed, encoder.sha256)
    report["portfolio"] = stage.report
    report["persona"] = persona
    report["conditioned"] = conditioned
    written = pages.write(out, report, answers, plan, worlds, studies, stage)
    if show:
        pages.show(report, out, written)
    return report


def _check(users: int, seed: int) -> None:
    if users < FEWEST_USERS:
        raise InputError(f"users is {users}, expected at least {FEWEST_USERS}: give more users")
    if seed < 0:
        raise InputError(f"seed is {seed}, expected 0 or more: give another seed")


def claim(out: Path) -> None:
    """Make the folder this demo's, or refuse one that holds anything but a demo.

    Raises:
        InputError: it is a file, or holds something else.
    """
    check_output(out, "folder")
    if out.is_dir() and any(out.iterdir()):
        if _is_demo(out / "report.json"):
            return
        raise InputError(
            f"{out} is not empty and holds no demo: give a new folder with --out; nothing was "
            "written"
        )
    # Said at once, so that a demo that was interrupted can be run again in its folder.
    write_json(out / "report.json", pages.UNFINISHED)


def _is_demo(path: Path) -> bool:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("demo") is True
