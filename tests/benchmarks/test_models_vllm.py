"""vLLM in the benchmark of language models: how it is started, and what is sent and expected."""

import argparse
import contextlib
import json
import os
import sys

import httpx
import numpy as np
import pytest

from benchmarks import harness, models, models_vllm
from jaxalign.errors import InputError

CEILING = {"matmul_flops": 1e12, "copy_bytes": 1e10, "launch_seconds": 1e-5, "dtype": "float32"}
# Answers as vLLM does, and writes down how it was started and what it was sent.
PROGRAM = """#!{python}
import http.server, json, os, pathlib, sys

folder = pathlib.Path(__file__).parent
model = pathlib.Path(sys.argv[2])
(folder / "started.json").write_text(json.dumps({{
    "words": sys.argv[1:], "files": sorted(path.name for path in model.iterdir()),
    "variables": {{name: value for name, value in os.environ.items() if "VLLM" in name}},
}}))


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, found):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

    def do_GET(self):
        self.answer({{"version": "0.0.1"}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tokens = [0] * body["max_tokens"]
        self.answer({{"choices": [{{"token_ids": tokens}} for _ in body["prompt"]]}})


port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def arguments(tmp_path, *words):
    parser = argparse.ArgumentParser()
    models.add_arguments(parser)
    found = parser.parse_args(["--vllm", str(tmp_path / "vllm"), *words])
    found.out = tmp_path / "out"
    return found


def answers(status, *choices):
    sent = []

    def server(request):
        sent.append(json.loads(request.content))
        return httpx.Response(status, json={"choices": [{"token_ids": ids} for ids in choices]})

    client = httpx.Client(base_url="http://vllm/v1", transport=httpx.MockTransport(server))
    return client, sent


def test_all_prompts_are_one_request():
    client, sent = answers(200, [5, 6, 7], [7, 7, 7])
    models_vllm.complete(client, np.asarray([[1, 2], [3, 4]], np.int32), 3)
    (body,) = sent
    assert body["prompt"] == [[1, 2], [3, 4]]
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"]) == (3, True, 0)


@pytest.mark.parametrize(
    ("status", "choices", "words"),
    [
        (200, ([5, 6], [7, 7, 7]), r"answers of \[2, 3\] tokens; expected 2 of 3"),
        (200, ([5, 6, 7],), r"answers of \[3\] tokens"),
        (400, (), "status 400"),
    ],
)
def test_an_answer_that_is_cut_or_refused_is_no_measurement(status, choices, words):
    client, _ = answers(status, *choices)
    with pytest.raises(RuntimeError, match=words):
        models_vllm.complete(client, np.zeros((2, 4), np.int32), 3)


def test_a_server_that_is_gone_fails_its_row_alone():
    def gone(request):
        raise httpx.ConnectError("refused")

    client = httpx.Client(base_url="http://vllm/v1", transport=httpx.MockTransport(gone))
    with pytest.raises(RuntimeError, match="does not answer"):
        models_vllm.complete(client, np.zeros((2, 4), np.int32), 3)


def test_keys_and_values_of_every_row_fit(tmp_path):
    found = models_vllm.variables(tmp_path / "bin" / "vllm", "135M", "float32", 256 * 96)
    assert "LD_PRELOAD" not in found
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "3"  # 256 rows of 96 tokens are 1.05 GiB
    cores = sorted(map(int, found["VLLM_CPU_OMP_THREADS_BIND"].split(",")))
    assert cores == sorted(os.sched_getaffinity(0))


def test_the_openmp_of_its_environment_is_taken(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libiomp5.so").touch()
    found = models_vllm.variables(tmp_path / "bin" / "vllm", "nano", "float32", 1)
    assert found["LD_PRELOAD"] == str(tmp_path / "lib" / "libiomp5.so")


def test_a_missing_program_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--vllm .*vllm: no such file"):
        models.run(arguments(tmp_path))


def test_it_is_measured_beside_the_others(tmp_path, monkeypatch):
    program = tmp_path / "vllm"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    ceilings = tmp_path / "ceilings.json"
    ceilings.write_text(json.dumps({"float32": CEILING}))
    monkeypatch.setenv(harness.CEILINGS, str(ceilings))
    words = ("--sizes", "nano", "--parts", "prefill", "--batches", "3", "--rounds", "1")
    models.run(arguments(tmp_path, *words, "--prompt", "8", "--new", "4"))
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["failed"] == []
    assert result["machine"]["versions"]["vllm"] == "0.0.1"
    assert [[*row["seconds"]] for row in result["rows"]] == [["jaxalign", "torch eager", "vLLM"]]
    started = json.loads((tmp_path / "started.json").read_text())
    assert {"config.json", "model.safetensors"} <= set(started["files"])
    assert started["words"][started["words"].index("--max-num-seqs") + 1] == "4"  # of prefill
    assert started["words"][started["words"].index("--max-model-len") + 1] == "12"
    assert "--enforce-eager" not in started["words"]
    assert "VLLM_CPU_OMP_THREADS_BIND" in started["variables"]


def test_the_others_are_measured_where_it_does_not_start(tmp_path, monkeypatch):
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\necho no such option\nexit 2\n")
    program.chmod(0o755)
    monkeypatch.setattr(harness, "started", lambda *_: {
        "claim": None, "machine": {"versions": {}}, "ceilings": CEILING, "rows": [], "failed": [],
    })  # fmt: skip
    monkeypatch.setattr(models, "_jobs", lambda *given: [("row", given[-1])])
    monkeypatch.setattr(models, "_measured", lambda name, complete, *_: {"found": complete})
    monkeypatch.setattr(models, "_table", lambda result: json.dumps(result["rows"]))
    models.run(arguments(tmp_path, "--sizes", "nano", "--parts", "decode"))
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["rows"] == [{"found": None}]
    assert [one["name"] for one in result["failed"]] == ["vLLM nano"]
    assert "no such option" in result["failed"][0]["why"]


def test_the_server_has_stopped_before_training_is_measured(tmp_path, monkeypatch):
    runs, measured = [], {}

    @contextlib.contextmanager
    def server(*_):
        runs.append(True)
        yield "complete"
        runs.clear()

    def jobs(part, *_):
        return [(part, part)]

    def seen(name, *_):
        measured[name] = bool(runs)
        return {}

    monkeypatch.setattr(models, "_check_vllm", lambda *_: None)
    monkeypatch.setattr(models, "_vllm", server)
    monkeypatch.setattr(models, "_jobs", jobs)
    monkeypatch.setattr(models, "_measured", seen)
    monkeypatch.setattr(models, "_table", lambda _: "")
    monkeypatch.setattr(harness, "started", lambda *_: {"ceilings": {}, "rows": [], "failed": []})
    models.run(arguments(tmp_path, "--sizes", "nano"))
    assert measured == {"prefill": True, "decode": True, "train": False}
