"""The README holds: its two commands, its links, its examples, every command and every option."""

import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from relay import cli
from relay.__main__ import main
from relay.config import load
from relay.providers import PROVIDERS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_two_commands_stand_as_promised() -> None:
    shell = "\n".join(blocks("sh"))
    assert "pip install . && relay run -c relay.yaml" in shell
    assert "pip install '.[test]' && pytest" in shell


def test_links_inside_the_page_lead_somewhere() -> None:
    titles = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    }
    for target in re.findall(r"\]\(#([^)]+)\)", README):
        assert target in titles, target
    for target in re.findall(r"\]\((?!#|http)([^)#]+)[^)]*\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("name", main.list_commands(None))  # type: ignore[arg-type]
def test_every_command_is_named_has_a_summary_and_an_example(name: str) -> None:
    assert f"relay {name}" in README, name
    assert name in cli.SUMMARIES
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Example" in result.output
    assert f"relay {name}" in result.output


def test_wrong_command_names_the_nearest() -> None:
    result = CliRunner().invoke(main, ["chekc"])
    assert result.exit_code == 2 and "Did you mean 'check'?" in result.output


def test_configuration_examples_load() -> None:
    environ = {name: "a-secret-value" for name in re.findall(r"\$\{([A-Z_]+)", README)}
    environ["REDIS_URL"] = "redis://127.0.0.1:6379"
    found = [text for text in blocks("yaml") if text.startswith("providers:")]
    assert len(found) >= len(PROVIDERS)
    for text in found:
        load(text, "README", environ=environ, read_file=lambda _: "a-secret-value", providers=PROVIDERS)


def test_every_provider_has_its_section() -> None:
    section = README[README.index("## Providers") :]
    for spec in PROVIDERS.values():
        assert f"### {spec.title}" in section, spec.title


def test_reference_of_options_is_current() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import configuration
    finally:
        sys.path.pop(0)
    assert configuration.current(README) == README, "run: python docs/configuration.py"
