from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Literal, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.config import describe, load_config, to_yaml
from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.experiments.moc import MocRunConfig
from jaxalign.experiments.mrm.config import MRMRunConfig
from jaxalign.experiments.pplug.config import PPlugEvaluateConfig, PPlugRunConfig
from jaxalign.mrm.baselines.gpo import GPOConfig
from jaxalign.mrm.config import BayesConfig, MRMConfig
from jaxalign.palm.config import BuildConfig
from jaxalign.rewards.bradley_terry import RewardConfig
from jaxalign.rewards.spec import RewardSpec
from jaxalign.serve.config import ServeConfig
from jaxalign.train.sft import SftConfig


@dataclass(frozen=True)
class Inner:
    """Inner.

    Attributes:
        inner_lr: rate of the inner steps; what does not
            fit on a line goes on.
        sizes: widths.
    """

    inner_lr: float = 0.1
    sizes: tuple[int, ...] = (2,)
    link: Literal["softmax", "signed"] = "softmax"
    rank: int | None = None
    flag: bool = False


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        seed: first seed.
    """

    seed: int = 0
    name: str = "run"
    features: Path | None = None
    span: tuple[float, float] = (0.0, 1.0)
    mrm: Inner = field(default_factory=lambda: Inner(sizes=(64, 2)))

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError("`seed` is negative, expected 0 or more.")


@dataclass(frozen=True)
class Needs:
    """A config with a key that must be given."""

    data: Path
    run: Run = Run()


@dataclass(frozen=True)
class Stages:
    """A config with a list of configs, which is set in the file only."""

    stages: tuple[Inner, ...] = (Inner(),)


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def test_defaults_come_without_a_file():
    assert load_config(Run, None, []) == Run()


def test_file_over_defaults_and_options_over_file(write):
    path = write("seed: 3\nmrm: {inner_lr: 1, sizes: [8, 4], rank: 5}\nfeatures: a/b.npy\n")
    config = load_config(Run, path, ["--mrm.inner_lr", "0.25", "--mrm.sizes", "16", "3"])
    inner = Inner(inner_lr=0.25, sizes=(16, 3), rank=5)
    assert config == Run(seed=3, features=Path("a/b.npy"), mrm=inner)


def test_defaults_of_a_nested_config_are_those_its_parent_gives_it(write):
    assert load_config(Run, write("seed: 1"), []).mrm.sizes == (64, 2)
    assert load_config(Run, write("mrm: {rank: 1}"), []).mrm.sizes == (64, 2)
    assert load_config(Run, None, ["--mrm.flag"]).mrm.sizes == (64, 2)


def test_ints_become_floats_and_exponents_are_numbers(write):
    config = load_config(Run, write("span: [1, 1e-3]\nmrm: {inner_lr: 1E4}"), [])
    assert config.span == (1.0, 1e-3)
    assert isinstance(config.span[0], float)
    assert config.mrm.inner_lr == 1e4


def test_dates_stay_text(write):
    assert load_config(Run, write("name: 2026-01-01"), []).name == "2026-01-01"


@pytest.mark.parametrize(
    ("words", "change"),
    [
        (["--mrm.inner-lr", "2"], {"inner_lr": 2.0}),
        (["--mrm.inner_lr=2e-3"], {"inner_lr": 2e-3}),
        (["--mrm.inner_lr", "-1"], {"inner_lr": -1.0}),
        (["--mrm.sizes"], {"sizes": ()}),
        (["--mrm.sizes", "-1", "3"], {"sizes": (-1, 3)}),
        (["--mrm.rank", "None"], {"rank": None}),
        (["--mrm.rank", "null"], {"rank": None}),
        (["--mrm.rank", "4", "--mrm.rank", "7"], {"rank": 7}),
        (["--mrm.link", "signed"], {"link": "signed"}),
        (["--mrm.flag"], {"flag": True}),
        (["--mrm.flag", "true"], {"flag": True}),
        (["--mrm.flag=False"], {"flag": False}),
    ],
)
def test_options(words, change):
    assert load_config(Run, None, words) == Run(mrm=replace(Run().mrm, **change))


def test_text_options_may_begin_with_dashes_or_be_empty():
    assert load_config(Run, None, ["--name=--x"]).name == "--x"
    assert load_config(Run, None, ["--name="]).name == ""


def test_required_key_from_file_or_option(write):
    assert load_config(Needs, write("data: x"), []).data == Path("x")
    assert load_config(Needs, None, ["--data", "x"]).data == Path("x")
    with pytest.raises(InputError, match="key `data` is missing, expected Path; give it"):
        load_config(Needs, None, [])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("sed: 1", ["key `sed` does not exist", "`seed`"]),
        ("mrm: {iner_lr: 1}", ["key `mrm.iner_lr` does not exist", "`mrm.inner_lr`"]),
        ("inner_lr: 1", ["key `inner_lr` does not exist", "`mrm.inner_lr`"]),
        ("mmr: {inner_lr: 1}", ["key `mmr` does not exist", "`mrm`"]),
        ("zzzzz: 1", ["key `zzzzz` does not exist", "one of `features`, `mrm`, `name`"]),
        ("seed: x\nsed: 1", ["key `sed` does not exist"]),
        ("1: 2", ["key `1` does not exist"]),
        ("mrm: {inner_lr: '1'}", ["key `mrm.inner_lr`: found '1' (str), expected float"]),
        ("seed: 1.5", ["key `seed`: found 1.5 (float), expected int"]),
        ("seed: true", ["key `seed`: found True (bool), expected int"]),
        ("seed:", ["key `seed`: found nothing, expected int"]),
        ("name: 3", ["key `name`: found 3 (int), expected str"]),
        ("name: no", ["key `name`: found False (bool), expected str"]),
        ("mrm: {flag: 1}", ["key `mrm.flag`: found 1 (int), expected bool"]),
        ("mrm: {sizes: 3}", ["key `mrm.sizes`: found 3 (int), expected [int ...]"]),
        ("mrm: {sizes: [1, x]}", ["key `mrm.sizes`: found [1, 'x'] (list), expected [int ...]"]),
        ("span: [1]", ["key `span`"]),
        ("mrm: {link: tanh}", ["`mrm.link`: found 'tanh' (str), expected softmax|signed"]),
        ("mrm: {rank: x}", ["key `mrm.rank`: found 'x' (str), expected int|None"]),
        ("mrm: 3", ["key `mrm`: found 3 (int), expected `key: value` lines"]),
        ("mrm:", ["key `mrm`: found nothing, expected `key: value` lines"]),
        ("seed: -1", [": `seed` is negative, expected 0 or more."]),
        ("seed: 1\nname: [", [", line 2: not readable as YAML"]),
        ("seed: 1\nseed: 2", [", line 2", "`seed` stands twice"]),
        ("seed: 1\n? [seed]\n: 2", [", line 2", "a key is a list or an object, expected text"]),
        ("a: &a [*a]", ["Circular"]),
        ("name: !!binary aGk=", ["expected text, numbers"]),
        ("name: !!python/name:os.system", ["not readable as YAML"]),
        ("- 1", ["found [1] (list), expected `key: value` lines"]),
        ("# nothing", ["is empty"]),
    ],
)
def test_bad_files_are_one_sentence_with_file_and_key(write, text, parts):
    path = write(text)
    with pytest.raises(InputError) as caught:
        load_config(Run, path, [])
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_list_of_configs_is_strict_in_the_file_and_refused_as_an_option(write):
    config = load_config(Stages, write("stages: [{rank: 1}, {rank: 2}]"), [])
    assert config.stages == (Inner(rank=1), Inner(rank=2))
    with pytest.raises(InputError, match=r"key `stages`, entry 1: `rnk` does not exist"):
        load_config(Stages, write("stages: [{rnk: 1}]"), [])
    with pytest.raises(InputError, match=r"`--stages`: found '1', expected \[Inner \.\.\.\]"):
        load_config(Stages, None, ["--stages", "1"])


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml does not exist"):
        load_config(Run, tmp_path / "none.yaml", [])
    with pytest.raises(InputError, match="cannot be read"):
        load_config(Run, tmp_path, [])
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(InputError, match="cannot be read"):
        load_config(Run, tmp_path / "bytes.yaml", [])


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--mrm.iner-lr", "1"], ["`--mrm.iner-lr` does not exist", "`--mrm.inner_lr`"]),
        (["--inner_lr", "1"], ["`--inner_lr` does not exist", "`--mrm.inner_lr`"]),
        (["--mrm", "1"], ["`--mrm` does not exist"]),
        (["x", "--seed", "1"], ["Found the argument 'x'"]),
        (["--seed", "1.5"], ["`--seed`: found '1.5', expected int"]),
        (["--seed", "1", "2"], ["`--seed`: found '1 2', expected int"]),
        (["--seed"], ["`--seed`: found no value, expected int"]),
        (["--mrm.link", "tanh"], ["`--mrm.link`: found 'tanh', expected softmax|signed"]),
        (["--mrm.flag", "maybe"], ["`--mrm.flag`: found 'Maybe', expected bool"]),
        (["--span", "1"], ["`--span`: found '1', expected [float float]"]),
        (["--help"], ["`--help` does not exist"]),
        (["--seed", "-1"], ["the options: `seed` is negative"]),
    ],
)
def test_bad_options_are_one_sentence_and_print_nothing(capsys, words, parts):
    with pytest.raises(InputError) as caught:
        load_config(Run, None, words)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_describe_lists_options_with_type_default_and_help():
    text = describe(Run)
    assert "  --seed int (0)\n      first seed.\n" in text
    assert "  --features Path|None (None)\n" in text
    assert "  --span [float float] ([0.0, 1.0])\n" in text
    assert "  --mrm.sizes [int ...] ([64, 2])\n      widths.\n" in text
    assert "inner steps; what does not fit on a line goes on.\n" in text
    assert "  --mrm.link softmax|signed (softmax)\n" in text
    assert "  --data Path (required)\n" in describe(Needs)


@pytest.mark.parametrize("config", [MRMConfig, GPOConfig])  # the second inherits some
def test_describe_has_help_for_each_field(config):
    lines = describe(config).splitlines()
    options = [line for line in lines if line.startswith("  --")]
    assert len(options) == len(config.__dataclass_fields__)
    for option, after in zip(lines, [*lines[1:], "  --"], strict=True):
        assert not (option.startswith("  --") and after.startswith("  --")), option


@pytest.mark.parametrize("config", [MRMConfig(), BayesConfig(), GPOConfig(), Run()])
def test_yaml_of_the_configs_reads_back(write, config):
    assert load_config(type(config), write(to_yaml(config)), []) == config


NAMES = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["1e-3", "2026-01-01", "no", "null", "1", ".inf", "--x", "", " ", "\n", "a\x85b"]
)
INNERS = st.builds(
    Inner,
    inner_lr=st.floats(allow_nan=False),
    sizes=st.lists(st.integers()).map(tuple),
    link=st.sampled_from(["softmax", "signed"]),
    rank=st.none() | st.integers(),
    flag=st.booleans(),
)
FLOATS = st.floats(allow_nan=False)
RUNS = st.builds(
    Run,
    seed=st.integers(0),
    name=NAMES,
    features=st.none() | st.sampled_from([Path("a/b"), Path("1"), Path(".")]),
    span=st.tuples(FLOATS, FLOATS),
    mrm=INNERS,
)


@settings(deadline=None)
@given(RUNS)
def test_any_config_reads_back_from_its_yaml(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(Run, path, []) == config


@dataclass(frozen=True)
class Reward:
    """A reward.

    Attributes:
        name: of it.
        kind: of it.
    """

    name: str
    kind: Literal["rule", "classifier"] = "rule"


@dataclass(frozen=True)
class Rewarded:
    """A run.

    Attributes:
        rewards: of it.
    """

    rewards: tuple[Reward, ...] = ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- {name: a}\n- {name: b, kind: clasifier}", "entry 2: `kind` is 'clasifier' .* expected "
         "rule.classifier"),
        ("- {nam: a}", "entry 1: `nam` does not exist, expected a key such as `name`"),
        ("- {kind: rule}", "entry 1: `name` is missing, expected str"),
        ("- {name: 3}", "entry 1: `name` is 3 .int., expected str"),
        ("- a", "entry 1: found 'a' .str., expected some of the keys `name`, `kind`"),
        ("a", "found 'a' .str., expected a list, with some of the keys `name`, `kind` in each"),
    ],
)  # fmt: skip
def test_an_entry_of_a_list_is_named(tmp_path, text, words):
    path = tmp_path / "run.yaml"
    path.write_text(f"rewards:\n{text}" if text[0] == "-" else f"rewards: {text}")
    with pytest.raises(InputError, match=f"run.yaml, key `rewards`.*{words}"):
        load_config(Rewarded, path, [])


def configs_in(config):
    """A config and all that are in it, one of each class."""
    found = {type(config): config}
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            found |= configs_in(value)
    return found


WHOLE = (
    MocRunConfig(), MRMRunConfig(), PPlugRunConfig(), PPlugEvaluateConfig(), BuildConfig(),
    RewardConfig(), RewardSpec("brevity"), SftConfig(), ServeConfig(),
)  # fmt: skip
CHOICES = {
    f"{cls.__name__}.{name}": (config, name)
    for whole in WHOLE
    for cls, config in configs_in(whole).items()
    for name, kind in get_type_hints(cls).items()
    if "Literal[" in str(kind)
}


@pytest.mark.parametrize("field_of_a_config", CHOICES)
def test_choices_are_checked_in_python_too(field_of_a_config):
    """A misspelt choice was taken for another one, without a word."""
    config, name = CHOICES[field_of_a_config]
    several = isinstance(getattr(config, name), tuple)
    wrong = ("nonsense",) if several else "nonsense"
    with pytest.raises(InputError, match=f"{name}: found 'nonsense', expected one of "):
        replace(config, **{name: wrong})


def test_choices_may_stand_beside_none():
    @dataclass(frozen=True)
    @checks_fields
    class Config:
        kind: Literal["a"] | None = None
        other: Literal["a"] | int = 3

    assert Config() == Config(None, 3)
    assert Config("a", 5).other == 5
    with pytest.raises(InputError, match="kind: found 'b', expected one of a, None; correct it"):
        Config("b")
    with pytest.raises(InputError, match="other: found 'b', expected one of a or a whole number;"):
        Config(other="b")
