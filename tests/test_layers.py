"""The layers of design.md section 2: imports point down only, and what is pure stays pure.

A new module is named here, in the layer where it belongs; one that is not named fails the first test.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "relay"


def named(text: str) -> frozenset[str]:
    return frozenset(f"relay.{name}" for name in text.split())


LAYERS: tuple[tuple[str, frozenset[str]], ...] = (
    ("version", frozenset({"relay"})),
    ("errors", named("errors")),
    ("model", named("model")),
    (
        "helpers",
        named(
            "numbers times symbols topics secrecy redaction saying codec retry schema asyncapi typescript tidings "
            "histogram repeats books targets"
        ),
    ),
    ("contract", named("providers.base")),
    # helpers that speak of the contract (and are handed the table of providers, so that they know none of them)
    (
        "helpers over the contract",
        named(
            "config identity outbox routes rollover intake normalizer lifecycle records replay difference holes "
            "spooled conflation stats shards gathered held ring seam"
        ),
    ),
    ("providers", frozenset()),  # relay.providers.<name>, each for itself
    ("table of providers", named("providers")),
    ("below the IO", named("opening serving zst")),  # what several of its modules share
    ("IO", named("client clock dashboard embedded feed systemd http journal log sink state_files spool")),
    (
        "whole",
        named(
            "bridge brought turns provider_state vitals metrics overview reload simulator recording player keeping "
            "supervisor standby notes"
        ),
    ),
    ("cli", named("cli __main__")),
)
"""Lowest first; a package stands for all that is in it."""
APART = frozenset({"providers", "IO"})
"""Layers whose members may not import one another."""
RANK = {layer: rank for rank, (layer, _) in enumerate(LAYERS)}
PURE_UP_TO = RANK["table of providers"]
IMPURE = frozenset({
    "aiohttp", "anyio", "asyncio", "concurrent", "glob", "httpx", "httpx2", "io", "logging",
    "multiprocessing", "os", "pathlib", "queue", "random", "redis", "secrets", "select", "shutil", "signal", "socket",
    "ssl", "structlog", "subprocess", "sys", "tempfile", "threading", "time", "websockets",
})  # fmt: skip
"""What a pure module never imports: clock, randomness, environment, files, network, logging, async."""


def modules() -> dict[str, Path]:
    """Every module under relay/, by its dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(tree: ast.AST, name: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a module imports, wherever in it; `from a import b` gives a.b where that
    is a module of ours, else a."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = name.split(".") if is_package else name.split(".")[:-1]
                base = ".".join([*here[: len(here) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield node.lineno, whole if whole in MODULES else base


def unit(name: str) -> tuple[str, str]:
    """The layer of a module and the member of it that it belongs to (`relay.feed` for `relay.feed.session`)."""
    for layer, members in LAYERS:
        if name in members:
            return layer, name
    parts = name.split(".")
    if parts[:2] == ["relay", "providers"] and len(parts) > 2:
        return "providers", ".".join(parts[:3])
    top = ".".join(parts[:2])
    for layer, members in LAYERS:
        if top in members and layer != "table of providers":
            return layer, top
    raise LookupError(f"{name} stands in no layer; name it in LAYERS")


def effects(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of what a pure module does not do although it needs no import of IMPURE for it."""
    for node in ast.walk(tree):
        match node:
            case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                yield node.lineno, "is async"
            case ast.Call(func=ast.Name(id="open" | "print" | "input" as called)):
                yield node.lineno, f"calls {called}"
            case ast.Attribute(value=ast.Name(id="datetime" | "date"), attr="now" | "utcnow" | "today" as read):
                yield node.lineno, f"reads the clock ({read})"
            case ast.Attribute(attr="uuid1" | "uuid4" as made) | ast.alias(name="uuid1" | "uuid4" as made):
                yield getattr(node, "lineno", 0), f"makes random ids ({made})"


def faults(name: str, source: str, is_package: bool = False) -> list[str]:
    """What is wrong with one module's imports."""
    layer, member = unit(name)
    found = []
    for line, target in imports(ast.parse(source), name, is_package):
        where = f"{name}:{line} imports {target}"
        if target.split(".")[0] != "relay":
            if RANK[layer] <= PURE_UP_TO and target.split(".")[0] in IMPURE:
                found.append(f"{where}: {layer} are pure")
            continue
        other, its_member = unit(target)
        if RANK[other] > RANK[layer]:
            found.append(f"{where}: {other} stand above {layer}")
        elif layer == other and layer in APART and member != its_member:
            found.append(f"{where}: {layer} do not import one another")
    if RANK[layer] <= PURE_UP_TO:
        found += [f"{name}:{line} {what}: {layer} are pure" for line, what in effects(ast.parse(source))]
    return found


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down_only(name: str) -> None:
    path = MODULES[name]
    assert faults(name, path.read_text(encoding="utf-8"), path.name == "__init__.py") == []


def test_helpers_do_not_import_in_circles() -> None:
    """Within one layer any order will do, but one there must be."""
    needs: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        member = unit(name)[1]
        for _, target in imports(tree, name, path.name == "__init__.py"):
            if (
                target in MODULES
                and unit(target)[1] != member
                and target != "relay"
                and unit(target)[0] == unit(name)[0]
            ):
                needs.setdefault(member, set()).add(unit(target)[1])
    left = dict(needs)
    while left:
        free = [member for member, wanted in left.items() if not wanted & left.keys()]
        assert free, f"in a circle: {sorted(left)}"
        for member in free:
            del left[member]


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("relay.model", "import relay.codec", "helpers stand above model"),
        ("relay.numbers", "from relay.providers.base import Frame", "contract stand above helpers"),
        ("relay.config", "from relay.providers import PROVIDERS", "table of providers stand above"),
        ("relay.config.loading", "from relay.providers import base, coinbase", "providers stand above"),
        ("relay.providers.tickatlas", "from relay.providers.coinbase import URL", "do not import one another"),
        ("relay.providers.coinbase.asking", "from .. import tickatlas", "do not import one another"),
        ("relay.feed.session", "def f():\n    from relay import sink", "IO do not import one another"),
        ("relay.journal", "import relay.bridge", "whole stand above IO"),
        ("relay.bridge", "from relay.cli import run", "cli stand above whole"),
        ("relay.times", "from time import time_ns", "are pure"),
        ("relay.providers.coinbase", "import asyncio", "are pure"),
        ("relay.intake", "import logging.handlers", "are pure"),
        ("relay.outbox", "async def f(): ...", "are pure"),
        ("relay.times", "from datetime import datetime\ndatetime.now()", "reads the clock"),
        ("relay.symbols", "import uuid\nuuid.uuid4()", "makes random ids"),
        ("relay.schema", "open('x')", "calls open"),
    ],
)  # fmt: skip
def test_what_points_up_is_found(name: str, source: str, complaint: str) -> None:
    (fault,) = faults(name, source)
    assert complaint in fault


def test_what_points_down_is_fine() -> None:
    source = "import re\nfrom relay import model, numbers\nfrom relay.providers.base import Frame\nfrom . import wire"
    assert faults("relay.providers.coinbase", source, is_package=True) == []


def test_a_module_without_a_layer_is_found() -> None:
    with pytest.raises(LookupError):
        unit("relay.helpers")


def test_modules_stay_small() -> None:
    """Past 500 lines a module splits by meaning."""
    long = {name: lines for name, path in MODULES.items() if (lines := len(path.read_text().splitlines())) > 500}
    assert not long


def test_no_module_is_a_drawer() -> None:
    assert not [name for name in MODULES if name.split(".")[-1] in ("utils", "util", "helpers", "common", "misc")]
