"""Every public name has its place: an entry of a table, a test of its edges, or no arrays."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
from metrics_table import METRICS
from moc_table import MOC
from mrm_table import MRM
from palm_table import PALM
from pplug_table import PPLUG
from test_shared_edges import TABLES as SHARED

TESTS = Path(__file__).resolve().parents[1]
PACKAGES = (
    "data", "data.importers", "demo", "experiments.moc", "experiments.mrm", "experiments.palm",
    "experiments.pplug", "kernels.scalarize", "kernels.token_logprob", "metrics", "metrics.users",
    "moc", "models", "mrm", "palm", "personalize", "personalize.policies",
    "personalize.strategies", "pplug", "rewards", "rollout", "runs", "serve",
    "serve.engines",
)  # fmt: skip
TABLES = {
    "metrics": METRICS,
    "moc": MOC,
    "mrm": MRM,
    "palm": PALM,
    "pplug": PPLUG,
    **SHARED,
}
# Functions of arrays without an entry, since they need a model or a run, or take arrays of another
# kind than numbers to compute with: the file that tests them.
ELSEWHERE = {
    "data.from_columns": "data/test_files.py",
    "kernels.scalarize.tilt_means": "kernels/test_scalarize.py",
    "moc.init_policy": "moc/test_moc_policy.py",
    "moc.insert_preference_tag": "moc/test_moc_preferences.py",
    "moc.preference_tag": "moc/test_moc_preferences.py",
    "moc.save_preference": "moc/test_moc_adapters.py",
    "models.generate_texts": "models/test_generate.py",
    "models.load_classifier": "models/test_classifiers.py",
    "models.load_language_model": "models/test_weights.py",
    "models.save_adapter": "models/test_peft.py",
    "models.to_nnx": "models/test_nnx_bridge.py",
    "mrm.belief_moments": "mrm/test_padding.py",
    "mrm.best_of": "mrm/test_gains.py",
    "mrm.feedback_posterior": "mrm/test_mixed_feedback.py",
    "mrm.feedback_moments": "mrm/test_feedback_belief.py",
    "mrm.init_feedback_belief": "mrm/test_feedback_belief.py",
    "mrm.observe": "mrm/test_feedback_belief.py",
    "mrm.fit": "mrm/test_train.py",
    "mrm.fit_prior": "mrm/test_padding.py",
    "mrm.init": "mrm/test_mrm.py",
    "mrm.init_belief": "mrm/test_padding.py",
    "mrm.rank": "mrm/test_adapting.py",
    "mrm.update_belief": "mrm/test_ask.py",
    "palm.best_of_size": "palm/test_palm_cover.py",
    "palm.cover": "palm/test_palm_cover.py",
    "palm.held_out": "palm/test_palm_portfolio.py",
    "palm.report": "palm/test_palm_gaps.py",
    "palm.tie_points": "palm/test_palm_gaps.py",
    "palm.upper_facets": "palm/test_palm_search.py",
    "palm.usage": "palm/test_palm_portfolio.py",
    "personalize.answer_as": "personalize/test_serve.py",
    "personalize.answer_conditioned": "personalize/test_conditioned.py",
    "personalize.policies.adapter_digest": "personalize/test_policies.py",
    "personalize.policies.answer_as": "personalize/test_serve.py",
    "personalize.project": "personalize/test_utility.py",
    "pplug.generate_answers": "pplug/test_pplug_train.py",
    "pplug.init_persona": "pplug/test_persona.py",
    "pplug.init_plug": "pplug/test_pplug_train.py",
    "pplug.rescale_persona": "pplug/test_persona.py",
    "pplug.task_token": "pplug/test_persona.py",
    "rewards.check_rewards": "rewards/test_vector_rewards.py",
    "rollout.rollout_policies": "rollout/test_rollout_policies.py",
    "runs.save_arrays": "runs/test_artifact.py",
    "runs.save_artifact": "runs/test_artifact.py",
}  # fmt: skip
ARRAYS = re.compile(
    r"Array|ndarray|NDArray|Floats|Bools|PersonaParams|Prior\b|Belief\b|_SupportsArray|Tree\b"
)


def public():
    """Every public function, as (package, name, object)."""
    found = []
    for package in PACKAGES:
        module = importlib.import_module(f"jaxalign.{package}")
        found += [(package, name, getattr(module, name)) for name in module.__all__]
    return found


def takes_arrays(function):
    """Whether an annotation of its arguments names arrays, other than those that identify a run."""
    return any(
        ARRAYS.search(inspect.formatannotation(parameter.annotation))
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "identity"
    )


FUNCTIONS = [
    (package, name, thing) for package, name, thing in public() if inspect.isroutine(thing)
]


def test_all_packages_with_public_names_are_here():
    root = TESTS.parent / "jaxalign"
    found = {
        str(path.parent.relative_to(root)).replace("/", ".")
        for path in root.rglob("__init__.py")
        if "__all__" in path.read_text("utf-8")
    }
    found |= {name for name in PACKAGES if name.startswith("kernels.")} | {"metrics.users"}
    assert found - {"."} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_function_of_arrays_has_an_entry(package):
    missing = []
    for own, name, function in FUNCTIONS:
        full = f"{own}.{name}"
        if own != package or not takes_arrays(function):
            continue
        table = "metrics" if own == "metrics.users" else own
        if name not in TABLES.get(table, {}) and full not in ELSEWHERE:
            missing.append(full)
    assert missing == [], "give it an entry in a table of tests/public"


def test_entries_are_of_functions_that_are_there():
    known = {f"{package}.{name}" for package, name, _ in FUNCTIONS}
    entries = {f"{package}.{name}" for package, table in TABLES.items() for name in table}
    assert entries <= known
    assert set(ELSEWHERE) <= known
    assert not set(ELSEWHERE) & entries


@pytest.mark.parametrize("name", ELSEWHERE)
def test_functions_without_an_entry_are_tested_where_it_says(name):
    text = (TESTS / ELSEWHERE[name]).read_text("utf-8")
    assert re.search(rf"\b{name.rpartition('.')[2]}\b", text)
