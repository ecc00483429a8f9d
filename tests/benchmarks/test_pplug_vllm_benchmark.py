"""The benchmark of exported personas: what is sent to vLLM, and how answers are compared."""

import argparse
import base64
import json

import httpx
import numpy as np
import pytest

from benchmarks import pplug_vllm
from jaxalign.data.histories import Histories, Sample
from jaxalign.data.torch_files import read_pt
from jaxalign.errors import InputError


def test_each_question_is_sent_as_embeddings_and_compared(tmp_path, monkeypatch):
    samples = Histories(tuple(Sample(str(n), "u", "?", "1", ()) for n in range(2)), (), "text")
    monkeypatch.setattr(
        pplug_vllm, "embed_question",
        lambda opened, one: np.full((3, 4), float(one.samples[0].id), np.float32),
    )  # fmt: skip

    def server(request):
        body = json.loads(request.content)
        path = tmp_path / "sent.pt"
        path.write_bytes(base64.b64decode(body["prompt_embeds"]))
        sent = read_pt(path)
        assert (sent.shape, body["temperature"], body["max_tokens"]) == ((3, 4), 0, 5)
        return httpx.Response(200, json={"choices": [{"text": f"answer {sent[0, 0]:.0f}"}]})

    client = httpx.Client(base_url="http://vllm/v1", transport=httpx.MockTransport(server))
    rows = pplug_vllm.compare(None, samples, ["answer 0", "answer 2"], client, 5)
    assert [(row["vllm"], row["equal"]) for row in rows] == [
        ("answer 0", True),
        ("answer 1", False),
    ]


def test_a_missing_program_is_named(tmp_path):
    parser = argparse.ArgumentParser()
    pplug_vllm.add_arguments(parser)
    words = ["--vllm", str(tmp_path / "vllm"), "--trained", str(tmp_path)]
    with pytest.raises(InputError, match=r"--vllm .*vllm: no such file"):
        pplug_vllm.run(parser.parse_args(words))
