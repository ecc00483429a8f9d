"""Every public function has its place: an entry of a table, or what it takes in place of arrays."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
from belief_table import BELIEFS
from bounds_table import BOUNDS
from doors_table import DOORS
from metrics_table import METRICS
from moc_table import MOC
from mrm_table import MRM
from numbers_table import NUMBERS
from palm_table import PALM
from pplug_table import PPLUG
from scalars_table import SCALARS
from test_shared_edges import TABLES as SHARED

TESTS = Path(__file__).resolve().parents[1]
PACKAGES = (
    "data", "data.importers", "demo", "experiments.moc", "experiments.mrm", "experiments.palm",
    "experiments.pplug", "kernels.scalarize", "kernels.token_logprob", "metrics", "metrics.users",
    "moc", "models", "mrm", "palm", "personalize", "personalize.policies",
    "personalize.strategies", "pplug", "rewards", "rollout", "runs", "serve",
    "serve.engines",
)  # fmt: skip
_PARTS = (
    {"metrics": METRICS, "moc": MOC, "mrm": MRM | BELIEFS, "palm": PALM | BOUNDS, "pplug": PPLUG},
    SHARED,
    DOORS,
    SCALARS,
)
TABLES = {
    package: {name: entry for part in _PARTS for name, entry in part.get(package, {}).items()}
    for package in dict.fromkeys(package for part in _PARTS for package in part)
}
# Functions that take neither arrays nor numbers to compute with, by what they take.
WITHOUT_ARRAYS = {
    "files and folders": """
        data.huffpost data.jester data.load data.load_authors data.load_completions
        data.load_features data.load_histories data.load_lamp data.load_source data.prism
        data.read_authors_checkpoint data.read_pt data.reddit data.save_features data.ukpconvarg1
        data.importers.import_feedback demo.run_demo demo.write_files experiments.moc.evaluate
        experiments.moc.run experiments.mrm.evaluate experiments.mrm.run
        experiments.palm.certify_policies experiments.palm.evaluate experiments.palm.load_built
        experiments.palm.route_users experiments.palm.run experiments.palm.run_policies
        experiments.pplug.evaluate experiments.pplug.run moc.load moc.save models.load_adapter
        models.load_classifier models.load_encoder models.load_language_model
        models.save_language_model mrm.adapt_file mrm.from_authors mrm.load
        mrm.open_users mrm.save palm.load palm.load_state personalize.policies.open_models
        pplug.history_store pplug.load pplug.save rewards.load_reward_model runs.finished_report
        runs.load_arrays runs.load_artifact runs.open_row_file runs.open_run_dir
    """,
    "texts": """
        moc.parse_preference moc.strip_preference_tags models.classify models.encode
        pplug.format_prompts rewards.classifier_reward rewards.compute_rewards
        rewards.measure_traits rewards.rule_rewards rewards.score rollout.completion_texts
    """,
    "models and choices, which are checked when they are made": """
        moc.init_policy moc.make_programs moc.make_step moc.train models.from_nnx mrm.adapt_users
        mrm.item_features mrm.read_state mrm.require mrm.user_state mrm.weights_of palm.assemble
        palm.baseline palm.build palm.known_pool palm.search palm.select_members palm.stack
        personalize.build_signed personalize.conditioned_strategy personalize.describe_taste
        personalize.describe_user personalize.guarantees personalize.member_strategy
        personalize.policies.identity personalize.strategies.conditioned_strategy
        personalize.strategies.member_strategy pplug.generate_answers pplug.init_plug
        pplug.prefixes pplug.train rollout.sample_and_score
        rollout.token_rewards
    """,
    "settings and names": """
        data.importers.each_row data.importers.formats data.importers.register_format
        moc.sample_preferences mrm.make_method mrm.register rewards.build_rewards
        rewards.concatenate_rewards rewards.known_levels rewards.register_reward
        rewards.registered_rewards rollout.check_untruncated serve.create_app serve.open_service
        serve.serve serve.engines.make_engine serve.engines.register_engine
    """,
}
ARRAYS = re.compile(
    r"Array|ndarray|NDArray|Floats|Bools|PersonaParams|Prior\b|Belief\b|_SupportsArray|"
    r"(?<!Shape)(?<!Sharding)Tree\b"
)


def public():
    """Every public function, as (package, name, object)."""
    found = []
    for package in PACKAGES:
        module = importlib.import_module(f"jaxalign.{package}")
        found += [(package, name, getattr(module, name)) for name in module.__all__]
    return found


def takes_arrays(function):
    """Whether an annotation of its arguments names arrays, other than identities and keys."""
    return any(
        ARRAYS.search(inspect.formatannotation(parameter.annotation))
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("identity", "key")
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


ENTRIES = {f"{package}.{name}" for package, table in TABLES.items() for name in table}
OTHERS = {name for names in WITHOUT_ARRAYS.values() for name in names.split()}


def entry_of(package, name):
    """The full name of a function, those of users' metrics as in `jaxalign.metrics`."""
    return f"{package.replace('metrics.users', 'metrics')}.{name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_function_has_an_entry(package):
    found = {entry_of(own, name) for own, name, _ in FUNCTIONS if own == package}
    assert found <= ENTRIES | OTHERS, "give it an entry in a table of tests/public"


def test_a_function_of_arrays_has_an_entry_of_arrays():
    found = {entry_of(own, name) for own, name, thing in FUNCTIONS if takes_arrays(thing)}
    assert found <= ENTRIES


def test_entries_are_of_what_is_there_and_each_has_one_place():
    known = {f"{package}.{name}" for package, name, _ in public()}
    assert known >= ENTRIES | set(NUMBERS) | OTHERS
    places = [ENTRIES | set(NUMBERS), OTHERS]
    assert sum(map(len, places)) == len(set().union(*places))
