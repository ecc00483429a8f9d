"""The compose file of the documentation: it can be read, and so can the commands in it."""

import re
from pathlib import Path

import pytest
import yaml

from jaxalign.cli import _parser
from jaxalign.commands.serve import _config
from jaxalign.integrations import open_webui

DOCS = Path(__file__).parents[2] / "docs"
COMPOSE = yaml.safe_load((DOCS / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


def test_every_service_secret_and_volume_that_is_named_is_there():
    for name, service in SERVICES.items():
        assert {"image", "build"} & service.keys(), name
        assert set(service.get("depends_on", ())) <= SERVICES.keys()
        assert set(service.get("secrets", ())) <= COMPOSE["secrets"].keys()
        volumes = {volume.partition(":")[0] for volume in service.get("volumes", ())}
        assert volumes <= COMPOSE["volumes"].keys()
    page = (DOCS / "serve.md").read_text()
    files = {entry["file"] for entry in COMPOSE["secrets"].values()} | {"secrets/webui.env"}
    assert all(f"docs/{file}" in page for file in files)
    assert "docs/secrets" in (DOCS.parent / ".gitignore").read_text()


def test_the_image_holds_the_package_alone():
    """Neither secrets nor the history of the checkout are copied into it."""
    lines = (DOCS.parent / ".dockerignore").read_text().splitlines()
    first, *others = [line for line in lines if line and not line.startswith("#")]
    assert first == "*"
    kept = {line[1:] for line in others if line.startswith("!")}
    assert kept == {"pyproject.toml", "README.md", "LICENSE", "jaxalign", "kernels", "configs"}


def test_the_service_starts_with_settings_that_can_be_used():
    program, *words = SERVICES["serve"]["command"]
    assert program == "jaxalign"
    arguments = _parser().parse_args(words)
    config = _config(arguments)
    assert config.host == "0.0.0.0"
    host = re.search(r"//(.*?):", config.engine.url)[1]
    assert host in SERVICES
    assert config.database.rpartition("@")[2].partition("/")[0] in SERVICES


def test_the_ratings_are_fetched_from_the_chats_by_way_of_the_proxy(capsys):
    *start, webui, service = SERVICES["ratings"]["command"]
    assert start == ["python", "-m", "jaxalign.integrations.open_webui"]
    for address in (webui, service):
        assert re.search(r"//(.*?):", address)[1] in SERVICES
    with pytest.raises(SystemExit, match="0"):
        open_webui.main([webui, service, "--help"])
    assert "JAXALIGN_WEBUI_KEY" in capsys.readouterr().out
