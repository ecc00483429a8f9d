"""`jaxalign palm`: the whole way on made-up candidates, and every bad input refused."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_calls import call, digest, refused

from jaxalign import palm
from jaxalign.config import load_config
from jaxalign.errors import InputError
from jaxalign.experiments.palm import load_built, run
from jaxalign.moc.preferences import parse_preference
from jaxalign.palm.candidates import from_rows, split_prompts
from jaxalign.palm.closed_form import candidate_oracle
from jaxalign.palm.config import BuildConfig
from jaxalign.palm.files import read_candidates
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.runs.user_store import AboutUsers, UserRecord, create_users

NAMES = ("short", "kind", "plain")
QUICK = ("--palm.size", "3", "--compare", "0", "--draws", "200", "--palm.stop_delta", "0.03",
         "--palm.eps", "0.3", "--palm.delta", "0.3")  # fmt: skip
CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "palm"


def candidate_rows(seed=0, prompts=16, count=8):
    """Rewards of unequal spread, on scales of their own."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(prompts, count, 3)) * (3.0, 1.0, 20.0)
    return [
        {"prompt": f"{seed}-{p}", "answer": f"answer {c}"} | dict(zip(NAMES, row, strict=True))
        for p, prompt in enumerate(values.tolist())
        for c, row in enumerate(prompt)
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_users(path, weights, **more):
    columns = dict(zip(NAMES, weights.T, strict=True)) | more
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with candidates of two sets of prompts, and a portfolio built from the first."""
    root = tmp_path_factory.mktemp("palm")
    write(root / "candidates.jsonl", candidate_rows())
    write(root / "others.jsonl", candidate_rows(seed=1))
    result = call("palm", "build", "--data", root / "candidates.jsonl", "--out", root / "built",
                  *QUICK, "--compare", "2", "--compare_draws", "2")  # fmt: skip
    assert result.code == 0, result.err
    assert f"a grid of {palm.grid_size(3, 0.3, 0.3):,} weights" in result.err
    assert "improvement lost" in result.out
    return root


def test_what_is_written(world):
    built = world / "built"
    assert {"portfolio.safetensors", "scale.json", "report.json", "report.md",
            "regions.png", "sizes.png"} <= {path.name for path in built.iterdir()}  # fmt: skip
    assert not list(built.glob(".*"))
    report = json.loads((built / "report.json").read_text())
    assert report["rewards"] == list(NAMES)
    assert report["prompts"] == {"chosen_on": 8, "certified_on": 8}
    assert len(report["members"]) == 4
    assert {row["method"] for row in report["sizes"]} == {
        "palm, additive", "palm, share", "uniform", "random", "k_center"
    }  # fmt: skip
    held = report["held_out"]
    assert held["additive_sd_low"] <= held["additive_sd"]["value"] <= held["additive_sd_high"]
    assert held["share_low"] <= held["share_lost"]["value"] <= 1
    pool, optimum = (report["certificate"][name] for name in ("pool", "optimum"))
    assert 0 < pool["additive"]["value"] <= optimum["additive"]["value"] + 1e-12
    for row in report["sizes"]:
        assert 0 <= row["mean_lost"] <= row["share_lost"] + 1e-9


def test_what_to_train_next_and_on_what(world, tmp_path):
    """The export is the best of n for each member, on the prompts that were chosen on alone."""
    rows = candidate_rows(prompts=8)
    out = tmp_path / "built"
    result = call("palm", "build", "--data", write(tmp_path / "c.jsonl", rows), "--out", out,
                  *QUICK, "--palm.size", "2", "--export")  # fmt: skip
    assert result.code == 0, result.err
    report, portfolio = (out / "report.md").read_text(), load_built(out)
    steps = report.partition("## What to train next")[2]
    first, _ = split_prompts(read_candidates(tmp_path / "c.jsonl"), 0.5, 0)
    levels = np.clip(portfolio.scale.levels(first.rewards), 0, 1)
    for number in (1, 2):
        file = out / "train" / f"member_{number}.jsonl"
        assert f"jaxalign sft --model BASE --data {file} --out {out}_member_{number}" in steps
        weight = portfolio.members.payload["weight"][number]
        best = np.argmax(levels @ weight, axis=1)
        said = [json.loads(line) for line in file.read_text().splitlines()]
        assert said == [
            {"prompt": prompt, "completion": f"answer {place}"}
            for prompt, place in zip(first.prompts, best, strict=True)
        ]
    shares = [line.partition("--weight ")[2].split()[0]
              for line in steps.splitlines() if "--weight" in line]  # fmt: skip
    for share, weight in zip(shares, portfolio.members.payload["weight"][1:], strict=True):
        np.testing.assert_allclose(parse_preference(share, NAMES), weight, atol=2e-3)
    assert f"palm build --policies {out}_member_1 {out}_member_2" in steps
    assert "--export" in (world / "built" / "report.md").read_text()


def test_names_and_folders_that_a_shell_or_a_plot_would_read(tmp_path):
    """Commands that can be pasted, and names that are no formula."""
    names = dict(zip(NAMES, ("cost in $", "$_", "plain talk"), strict=True))
    rows = [{names.get(name, name): value for name, value in row.items()}
            for row in candidate_rows(prompts=8)]  # fmt: skip
    out = tmp_path / "my builds"
    result = call("palm", "build", "--data", write(tmp_path / "c.jsonl", rows), "--out", out,
                  *QUICK, "--draws", "0", "--palm.size", "2")  # fmt: skip
    assert result.code == 0, result.err
    steps = (out / "report.md").read_text().partition("## What to train next")[2]
    commands = [shlex.split(line) for line in steps.splitlines() if line.startswith("jaxalign ")]
    assert [command[1] for command in commands] == ["sft", "sft", "moc", "moc", "palm"]
    for command in commands[:4]:
        assert command[command.index("--out") + 1].startswith(f"{out}_member_")
    for command in commands[2:4]:
        weight = command[command.index("--weight") + 1]
        assert [part.split("=")[0] for part in weight.split(",")] == list(names.values())
    assert commands[4][-5:] == [*names.values(), "--out", f"{out}_trained"]
    # Without draws for the sizes, the certificate has its band all the same.
    held = json.loads((out / "report.json").read_text())["held_out"]
    assert held["additive_low"] < held["additive"]["value"] < held["additive_high"]


def test_every_user_is_routed_as_in_memory(world, tmp_path):
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 4000)
    users = write_users(tmp_path / "users.parquet", weights, user=[f"u{i}" for i in range(4000)])
    result = call("palm", "route", "--portfolio", world / "built", "--users", users,
                  "--out", tmp_path / "routed.parquet")  # fmt: skip
    assert result.code == 0, result.err
    assert "4,000 users; perplexity" in result.out
    routed = pq.read_table(tmp_path / "routed.parquet")
    assert routed["user"].to_pylist()[:2] == ["u0", "u1"]
    portfolio = palm.load(world / "built")
    scores = weights @ portfolio.values.T
    np.testing.assert_array_equal(routed["member"], scores.argmax(axis=1))
    np.testing.assert_allclose(routed["value"], scores.max(axis=1), rtol=1e-5)
    bound = (weights @ portfolio.facets.T).max(axis=1) - scores.max(axis=1)
    np.testing.assert_allclose(routed["regret_bound"], bound, atol=1e-5)
    assert bound.max() <= portfolio.certificate.optimum.additive.value + 1e-9


def test_the_bound_holds_against_the_true_optimum(world):
    portfolio = load_built(world / "built")
    first, _ = split_prompts(read_candidates(world / "candidates.jsonl"), 0.5, 0)
    oracle = candidate_oracle(first, portfolio.scale, portfolio.beta)
    weights = np.random.default_rng(1).dirichlet(np.ones(3), 300)
    optimum = np.array([w @ p.rewards - portfolio.beta * p.kl
                        for w, p in zip(weights, oracle.many(weights), strict=True)])  # fmt: skip
    assert (optimum <= (weights @ portfolio.facets.T).max(axis=1) + 1e-9).all()


def test_batches_and_json_lines_give_the_same(world, tmp_path, monkeypatch):
    weights = np.random.default_rng(2).dirichlet(np.ones(3), 50)
    parquet = write_users(tmp_path / "u.parquet", weights)
    rows = [dict(zip(NAMES, row, strict=True)) for row in weights.tolist()]
    lines = write(tmp_path / "u.jsonl", rows)
    monkeypatch.setattr("jaxalign.palm.users.BATCH", 16)
    for users, out in ((parquet, tmp_path / "r.jsonl"), (lines, tmp_path / "r.parquet")):
        result = call("palm", "route", "--portfolio", world / "built", "--users", users,
                      "--out", out)  # fmt: skip
        assert result.code == 0, result.err
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert rows == pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert [row["user"] for row in rows] == [str(i) for i in range(50)]


def test_certified_on_other_prompts(world, tmp_path):
    out = tmp_path / "certificate.json"
    for data, prompts in (("others", 16), ("candidates", 8)):
        result = call("palm", "certify", "--portfolio", world / "built",
                      "--data", world / f"{data}.jsonl", "--out", out)  # fmt: skip
        assert result.code == 0, result.err
        found = json.loads(out.read_text())
        assert found["prompts"] == prompts  # those chosen on are left out
        assert found["additive_low"] <= found["additive"]["value"] <= found["additive_high"]


def test_certificates_have_the_band_of_the_build(world, tmp_path, monkeypatch):
    """The level and draws of the build, under a folder below the home folder."""
    monkeypatch.setenv("HOME", str(world))
    levels = {}
    for level in ("0.5", "0.9"):
        built = tmp_path / level
        result = call("palm", "build", "--data", world / "candidates.jsonl", "--out", built,
                      *QUICK, "--level", level)  # fmt: skip
        assert result.code == 0, result.err
        certify = ("palm", "certify", "--portfolio", built, "--data", world / "candidates.jsonl",
                   "--out", tmp_path / "c.json")  # fmt: skip
        assert call(*certify).code == 0
        found = json.loads((tmp_path / "c.json").read_text())
        assert found == json.loads((built / "report.json").read_text())["held_out"]
        levels[level] = found
    assert levels["0.5"]["additive_high"] < levels["0.9"]["additive_high"]
    home = call("palm", "certify", "--portfolio", "~/built", "--data", world / "others.jsonl")
    assert home.code == 0, home.err


def test_a_limit_of_calls_that_comes_first_is_said(world, tmp_path):
    result = call("palm", "build", "--data", world / "candidates.jsonl", "--out", tmp_path / "out",
                  *QUICK, "--palm.max_calls", "3")  # fmt: skip
    assert result.code == 0, result.err
    assert "nan" not in result.err
    assert "the limit of calls came before the bounds could meet" in " ".join(result.err.split())


def unfinished(folder):
    refused(call("palm", "route", "--portfolio", folder, "--users", "u.parquet",
                 "--out", folder / "r.parquet"), "unfinished run")  # fmt: skip
    refused(call("palm", "certify", "--portfolio", folder, "--data", "demo"), "unfinished run")


@pytest.mark.parametrize("last", ["select_members", "write_json", "write_report"])
def test_a_stopped_build_is_unfinished_and_goes_on(world, tmp_path, monkeypatch, last):
    """Stopped before the portfolio, or when it is written but not all of the report."""
    build = ("palm", "build", "--data", world / "candidates.jsonl", *QUICK)
    assert call(*build, "--out", tmp_path / "whole").code == 0
    calls = []

    def stop(*arguments, **options):
        calls.append(1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"jaxalign.experiments.palm._run.{last}", stop)
        stopped = call(*build, "--out", tmp_path / "part")
    assert (stopped.code, len(calls)) == (130, 1)
    assert "--resume" in stopped.err
    assert not (tmp_path / "part" / "report.json").exists()
    assert (tmp_path / "part" / "portfolio.safetensors").exists() == (last != "select_members")
    refused(call(*build, "--out", tmp_path / "part"), "unfinished run", "--resume")
    unfinished(tmp_path / "part")
    again = call(*build, "--out", tmp_path / "part", "--resume")
    assert again.code == 0
    assert "going on after" in again.err
    folders = tmp_path / "whole", tmp_path / "part"
    whole, part = (json.loads((folder / "report.json").read_text()) for folder in folders)
    for each in (whole, part):
        each["selection"].pop("seconds")
    assert whole == part
    one, other = map(load_built, folders)
    np.testing.assert_array_equal(one.members.rewards, other.members.rewards)


def users_of(path, *rows):
    return write_users(path, np.array(rows, float))


def test_weights_off_the_simplex(world, tmp_path):
    route = ("palm", "route", "--portfolio", world / "built", "--out", tmp_path / "r.parquet")
    off = users_of(tmp_path / "off.parquet", [0.2, 0.3, 0.5], [2, 1, 1])
    refused(call(*route, "--users", off), "off.parquet, row 2", "--normalise")
    assert call(*route, "--users", off, "--normalise").code == 0
    rows = [dict(zip(NAMES, row, strict=True)) for row in ([0.2, 0.3, 0.5], [2, 1, 1])]
    (tmp_path / "off.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    refused(call(*route, "--users", tmp_path / "off.jsonl"), "off.jsonl, line 3")
    even = users_of(tmp_path / "even.parquet", [0.2, 0.3, 0.5], [0.5, 0.25, 0.25])
    once = pq.read_table(tmp_path / "r.parquet")
    assert call(*route, "--users", even).code == 0
    assert pq.read_table(tmp_path / "r.parquet").equals(once)
    table = pq.read_table(even)
    wide = tmp_path / "wide.parquet"
    pq.write_table(table.append_column("calm", table.column(0)), wide)
    assert "not used, since the portfolio has no such rewards: `calm`" in call(
        *route, "--users", wide
    ).err  # fmt: skip
    for name, row in (
        ("negative", [0.8, 0.4, -0.2]),
        ("disliked", [-0.8, 0.4, 0.25]),
        ("zero", [0, 0, 0]),
    ):
        users = users_of(tmp_path / f"{name}.parquet", [1, 0, 0], row)
        before = digest(tmp_path)
        said = refused(call(*route, "--users", users, "--normalise"), "row 2")
        assert name != "disliked" or "[-0.8   0.4   0.25]" in said  # as in the file
        # What serves dislikes is named, and no option that cannot.
        assert ("--palm.weights signed" in said) == (name != "zero")
        said = refused(call(*route, "--users", users), "row 2")
        assert ("Or add --normalise" in said) == (name == "zero")
        assert digest(tmp_path) == before  # no half-written file, the old one as it was
    users = users_of(tmp_path / "nan.parquet", [1, 0, 0], [np.nan, 0, 1])
    refused(call(*route, "--users", users), "nan.parquet, row 2", "`short`")
    pq.write_table(pa.table({"short": [1.0]}), tmp_path / "names.parquet")
    refused(call(*route, "--users", tmp_path / "names.parquet"), "no column `kind`, `plain`")
    refused(call(*route[:-1], tmp_path / "r.csv", "--users", even), "must end in .parquet")


def adapted(path, weights, rewards=(), scale=""):
    """A file as `jaxalign mrm adapt` writes it."""
    users = create_users(AboutUsers("", "bayes", weights.shape[1], 1, tuple(rewards), scale))
    users.put(UserRecord(str(i), 1, np.nan, row, np.ones((1, 1))) for i, row in enumerate(weights))
    users.save(path)
    return path


def test_weights_on_another_scale_or_without_names_are_refused(world, tmp_path):
    """Learned rewards whose number fits, and named ones of another scale, were accepted once."""
    out = tmp_path / "r.parquet"
    route = ("palm", "route", "--portfolio", world / "built", "--out", out, "--normalise")
    weights, names = np.random.default_rng(0).normal(size=(5, 3)) + 3, NAMES
    own, other = load_built(world / "built").scale.digest, "0" * 64
    learned = adapted(tmp_path / "learned.sqlite", weights)
    refused(call(*route, "--users", learned), "learned.sqlite", "without names", own[:12],
            "--features.scale")  # fmt: skip
    foreign = adapted(tmp_path / "foreign.sqlite", weights, rewards=names, scale=other)
    refused(call(*route, "--users", foreign), "scale '000000000000'", own[:12], "--scale_from")
    by_hand = write(tmp_path / "u.jsonl", [dict.fromkeys(NAMES, 1) | {"scale": other}])
    refused(call(*route, "--users", by_hand), "u.jsonl", "scale '000000000000'")
    assert not out.exists()
    fitting = adapted(tmp_path / "fitting.sqlite", weights, rewards=names, scale=own)
    assert call(*route, "--users", fitting).code == 0
    by_hand = write(
        tmp_path / "u.jsonl", [dict(zip(NAMES, row, strict=True)) for row in weights.tolist()]
    )
    routed = pq.read_table(out)["member"]
    assert call(*route, "--users", by_hand).code == 0
    # One width of all levels: on the simplex, weights per level and per deviation are the same.
    assert pq.read_table(out)["member"].equals(routed)


def test_a_portfolio_on_the_scale_of_another_run(world, tmp_path):
    scale = RewardScale(NAMES, [0.0, 0.0, 1.0], [2.0, 1.0, 10.0], [0.0] * 3, [1.0] * 3)
    (tmp_path / "scale.json").write_text(json.dumps(scale.to_json()))
    build = ("palm", "build", "--data", world / "candidates.jsonl", *QUICK)
    out = tmp_path / "built"
    assert call(*build, "--out", out, "--scale_from", tmp_path).code == 0
    found = load_built(out).scale
    assert found.digest == scale.digest == json.loads((out / "report.json").read_text())["scale"]
    np.testing.assert_allclose((found.high - found.low) / found.std, 6)  # 3 deviations either side
    users = adapted(tmp_path / "u.sqlite", np.ones((2, 3)), rewards=NAMES,
                    scale=scale.digest)  # fmt: skip
    assert call("palm", "route", "--portfolio", out, "--users", users, "--normalise",
                "--out", tmp_path / "r.parquet").code == 0  # fmt: skip
    few = ("--rewards", "short", "kind", "--out", tmp_path / "few")
    refused(call(*build, *few, "--scale_from", out), "scale of the rewards short, kind, plain")
    refused(call(*build, *few, "--scale_from", tmp_path / "none"), "no such file", "scale.json")


def bad(tmp_path, change):
    rows = candidate_rows()
    change(rows)
    return write(tmp_path / "bad.jsonl", rows)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda rows: rows[4].update(kind=float("nan")), (), ("bad.jsonl, line 5", "`kind`")),
        (lambda rows: [row.update(kind=1.0) for row in rows], (), ("`kind` is 1 in every row",)),
        (lambda rows: None, ("--scale", "none"), ("line 1", "expected 0 to 1")),
        (lambda rows: None, ("--reward_range", "-9", "9"), ("`plain`", "expected -9 to 9")),
        (lambda rows: rows.append(rows[0] | {"prompt": "lonely"}), (), ("line 129", "'lonely'")),
        (lambda rows: rows.__delitem__(slice(16, None)), (), ("found 2", "at least 3")),
        (lambda rows: None, ("--rewards", "short", "long"), ("no column `long`",)),
        (lambda rows: None, ("--palm.eps", "0.001", "--palm.delta", "0.001"), ("--confirm",)),
        (lambda rows: None, ("--palm.eps", "2"), ("eps", "between 0 and 1")),
        (lambda rows: None, ("--beta", "0"), ("beta", "above 0")),
        (lambda rows: None, ("--scale", "range"), ("reward_range",)),
        (lambda rows: None, ("--reward_range", "-99", "inf"), ("reward_range: found inf",)),
        (lambda rows: None, ("--palm.time_limit", "inf"), ("`palm`: time_limit: found inf",)),
        (lambda rows: None, ("--palm.floor", "inf"), ("`palm`: floor: found inf",)),
        (lambda rows: None, ("--draws", "1"), ("draws: found 1", "at least 20")),
        (lambda rows: None, ("--draws", "50", "--level", "0.99"), ("at least 100",)),
        (lambda rows: None, ("--palm.search", "full", "--palm.weights", "signed"), ("search",)),
        (lambda rows: None, ("--palm.search", "full", "--palm.targets", "corners"), ("search",)),
        (lambda rows: None, ("--palm.sise", "2"), ("`--palm.size`",)),
    ],
)
def test_bad_candidates_and_settings(tmp_path, change, options, words):
    data, out = bad(tmp_path, change), tmp_path / "out"
    refused(call("palm", "build", "--data", data, "--out", out, *QUICK, *options), *words)
    assert not out.exists()


def test_an_export_without_answers_is_refused_before_the_build(tmp_path):
    rng = np.random.default_rng(0)
    found = from_rows(list("aabbccdd"), rng.normal(size=(8, 2)), ("short", "kind"))
    with pytest.raises(InputError, match="--export: found candidates without answers"):
        run(BuildConfig(), found, "memory", tmp_path / "out", export=True)
    assert not (tmp_path / "out").exists()


def test_the_count_comes_before_the_refusal(tmp_path):
    data = write(tmp_path / "c.jsonl", candidate_rows(prompts=4))
    result = call("palm", "build", "--data", data, "--out", tmp_path / "out",
                  "--palm.eps", "0.01", "--palm.delta", "0.001")  # fmt: skip
    count = palm.grid_size(3, 0.01, 0.001)
    assert f"a grid of {count:,} weights" in result.err
    refused(result, f"{count:,}", "--confirm")
    confirmed = call("palm", "build", "--data", data, "--out", tmp_path / "out", *QUICK,
                     "--palm.grid_limit", "100", "--confirm")  # fmt: skip
    assert confirmed.code == 0, confirmed.err


def test_folders_that_are_no_portfolio_or_were_changed(world, tmp_path):
    users = users_of(tmp_path / "u.parquet", [0.2, 0.3, 0.5])

    def route(folder):
        return call("palm", "route", "--portfolio", folder, "--users", users,
                    "--out", tmp_path / "r.parquet")  # fmt: skip

    def copied(name):
        return Path(shutil.copytree(world / "built", tmp_path / name))

    refused(route(tmp_path), "run.json: no such file", "jaxalign palm build")
    refused(route(tmp_path / "none"), "run.json: no such file")
    damaged = copied("damaged") / palm.portfolio.FILE
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 1
    damaged.write_bytes(content)
    refused(route(damaged.parent), "digest does not fit", "jaxalign palm build")
    damaged.write_bytes(content[:-10])
    refused(route(damaged.parent), "is damaged")
    (copied("missing") / palm.portfolio.FILE).unlink()
    refused(route(tmp_path / "missing"), "no such file", "jaxalign palm build")
    # The folders of the format before, JSON beside NumPy arrays.
    old = copied("old")
    (old / palm.portfolio.FILE).unlink()
    (old / "portfolio.json").write_text("{}")
    refused(route(old), "jaxalign palm build")
    own = palm.load(world / "built")
    found = read_candidates(world / "candidates.jsonl")
    chosen = {p for p, mark in zip(found.prompts, found.marks, strict=True)
              if mark in own.chosen_on}  # fmt: skip
    data = write(
        tmp_path / "known.jsonl", [row for row in candidate_rows() if row["prompt"] in chosen]
    )
    refused(call("palm", "certify", "--portfolio", world / "built", "--data", data), "found 0")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_load_and_say_how_to_run_them(path):
    load_config(BuildConfig, path, [])
    assert path.read_text().startswith(f"# jaxalign palm build --config configs/palm/{path.name}")


@pytest.mark.slow
def test_six_commands_on_the_shipped_answers(tmp_path):
    """Build, certify and route in processes of their own, on real answers."""

    def jaxalign(*arguments):
        command = [sys.executable, "-m", "jaxalign.cli", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    built = tmp_path / "built"
    jaxalign("palm", "build", "--config", CONFIGS / "demo.yaml", "--data", "demo", "--out", built,
             "--compare", "3")  # fmt: skip
    assert "95 % band" in jaxalign("palm", "certify", "--portfolio", built, "--data", "demo")
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 100_000)
    names = ("brevity", "positivity", "simplicity")
    pq.write_table(pa.table(dict(zip(names, weights.T, strict=True))), tmp_path / "u.parquet")
    said = jaxalign("palm", "route", "--portfolio", built, "--users", tmp_path / "u.parquet",
                    "--out", tmp_path / "r.parquet")  # fmt: skip
    assert "100,000 users" in said
    assert (built / "regions.png").stat().st_size > 10_000
