"""compose.yaml and Dockerfile parse, and every command they name exists. No engine runs them here."""

import json
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from relay.__main__ import main

ROOT = Path(__file__).resolve().parents[1]


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())  # type: ignore[no-any-return]


def instructions() -> list[tuple[str, str]]:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return [
        (words[0], words[1])
        for line in lines
        if line.strip() and not line.startswith("#") and len(words := line.split(None, 1)) == 2
    ]


def test_compose_names_a_healthy_valkey_before_the_relay() -> None:
    services = compose()["services"]
    assert services["valkey"]["image"] == "valkey/valkey:9.1"
    assert services["valkey"]["healthcheck"]["test"][0] == "CMD"
    assert services["relay"]["depends_on"] == {"valkey": {"condition": "service_healthy"}}
    assert set(compose()["volumes"]) == {
        mount.split(":")[0]
        for service in services.values()
        for mount in service["volumes"]
        if not mount.startswith((".", "/"))
    }


def test_compose_exposes_nothing_beyond_loopback() -> None:
    for service in compose()["services"].values():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")


def test_commands_of_both_files_exist() -> None:
    commands = [compose()["services"]["relay"]["command"]]
    commands += [json.loads(value) for name, value in instructions() if name == "CMD"]
    assert len(commands) == 2
    for words in commands:
        result = CliRunner().invoke(main, [words[0], "--help"])
        assert result.exit_code == 0, result.output
        for option in (w for w in words if w.startswith("-")):
            assert option in result.output


def test_image_is_slim_not_root_and_in_exec_form() -> None:
    steps = instructions()
    assert all("slim" in value for name, value in steps if name == "FROM")
    assert [value for name, value in steps if name == "USER"] == ["relay"]
    assert [json.loads(value) for name, value in steps if name == "ENTRYPOINT"] == [["relay"]]
    copied = [value.split()[:-1] for name, value in steps if name == "COPY" and "--from" not in value]
    for sources in copied:
        for source in sources:
            assert (ROOT / source).exists(), source
