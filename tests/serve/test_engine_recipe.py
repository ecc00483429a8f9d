"""A new engine is one file and one line: the recipe of CONTRIBUTING, followed word for word."""

import re
from pathlib import Path

from running import CHAT, client_of

from jaxalign.serve import EngineConfig, ServeConfig
from jaxalign.serve.engines import ENGINES

RECIPE = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"


def test_the_recipe_makes_an_engine_that_is_served(tmp_path):
    section = RECIPE.read_text("utf-8").split("### An engine\n")[1].split("\n### ")[0]
    code, line = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert line.startswith("import jaxalign.serve.engines.echo")
    try:
        exec(compile(code, "echo.py", "exec"), {"__name__": "echo"})
        config = ServeConfig(
            engine=EngineConfig("echo"), database=f"sqlite:///{tmp_path}/service.sqlite"
        )
        with client_of(config) as client:
            found = client.post("/v1/chat/completions", json=CHAT).json()
            stream = {**CHAT, "model": "echo", "stream": True}
            pieces = client.post("/v1/chat/completions", json=stream).text
    finally:
        ENGINES.pop("echo", None)
    assert found["choices"][0]["message"]["content"] == "How was your day?"
    assert "How was your day?" in pieces
    assert pieces.endswith("data: [DONE]\n\n")
