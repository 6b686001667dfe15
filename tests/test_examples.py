"""The recipes work: each one, as a program of its own, gives every id once through cuts, holes and a new run.

Those whose runtime is not here are skipped, visibly. Where node's `redis` is: examples/node_modules or the folder that
RELAY_TEST_NODE_MODULES names (`npm install redis`). Jedis: the folder that RELAY_TEST_JARS names.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
from relays import until
from streams import Writer

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
T = "trades.BTC-USD"


def command_of(name: str, folder: Path) -> list[str]:
    """How to run a recipe here; skips where it cannot be."""
    path = EXAMPLES / name
    if name.endswith(".py"):
        return [sys.executable, str(path)]
    if name.endswith(".mjs"):
        node = shutil.which("node")
        modules = Path(os.environ.get("RELAY_TEST_NODE_MODULES", EXAMPLES / "node_modules"))
        if node is None or not (modules / "redis").is_dir():
            pytest.skip(f"no node, or no `redis` in {modules}: {name} is not run")
        (folder / "node_modules").symlink_to(modules)
        return [node, shutil.copy(path, folder)]
    if name.endswith(".java"):
        java, jars = shutil.which("java"), os.environ.get("RELAY_TEST_JARS", "")
        if java is None or not list(Path(jars or "/nowhere").glob("jedis*.jar")):
            pytest.skip(f"no java, or no Jedis in RELAY_TEST_JARS: {name} is not run")
        return [java, "-cp", f"{jars}/*", str(path)]
    pytest.skip(f"no runtime for {name}: it is not run")


class Recipe:
    """A recipe that runs; the ids that it has printed are in `ids`."""

    def __init__(self, name: str, folder: Path, *args: str) -> None:
        self.out = folder / "out"
        with self.out.open("wb") as out:
            command = [*command_of(name, folder), *args]
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=folder)

    def __enter__(self) -> "Recipe":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def lines(self) -> list[str]:
        return self.out.read_text().splitlines()

    @property
    def ids(self) -> list[str]:
        return [line.split()[0] for line in self.lines if re.match(r"\d+-\d+ ", line)]

    async def got(self, ids: list[str]) -> None:
        await until(lambda: self.process.poll() is not None or len(self.ids) >= len(ids), 20)
        assert self.ids == ids, self.out.read_text()


@pytest.fixture
def writer(redis_url: str) -> Iterator[Writer]:
    with Writer(redis_url) as writer:
        yield writer


RUN = ["python_stream.py", "python_pubsub.py", "node_stream.mjs", "node_pubsub.mjs", "Reader.java", "reader.go"]


@pytest.mark.parametrize("name", RUN)
async def test_recipe_gives_each_id_once(name: str, redis_url: str, writer: Writer, tmp_path: Path) -> None:
    ids = writer.put(T, 5)
    with Recipe(name, tmp_path, redis_url, T, ids[1]) as recipe:
        await recipe.got(ids[2:])
        ids += writer.put(T, 3)
        ids += writer.put(T, 2, publish=False)
        ids += writer.put(T)
        await recipe.got(ids[2:])
        mine = writer.client.client_id()
        for one in writer.client.client_list():
            if int(one["id"]) != mine:
                with contextlib.suppress(redis.ResponseError):  # it has gone meanwhile
                    writer.client.client_kill_filter(_id=one["id"])
        ids += writer.put(T, 2)
        await recipe.got(ids[2:])
        writer.restart()
        ids += writer.put(T, 2)
        await recipe.got(ids[2:])
        assert not [line for line in recipe.lines if line.startswith("gap")]


@pytest.mark.parametrize("name", RUN[:4])
async def test_recipe_begins_with_what_is_new_and_tells_of_a_hole(
    name: str, redis_url: str, writer: Writer, tmp_path: Path
) -> None:
    old = writer.put(T, 5)
    with Recipe(name, tmp_path, redis_url, T) as recipe:
        # how far it is cannot be seen from outside: write until something comes
        ids: list[str] = []

        def comes() -> bool:
            ids.extend(writer.put(T))
            return recipe.ids != []

        await until(comes, 20)
        first = ids.index(recipe.ids[0])
        await recipe.got(ids[first:])
        assert not set(recipe.ids) & set(old)
        writer.skip(T, 3)
        ids += writer.put(T)
        await recipe.got(ids[first:])
        await until(lambda: [line for line in recipe.lines if line.startswith("gap")])


def test_commands_of_redis_cli_work(redis_url: str, writer: Writer) -> None:
    if shutil.which("redis-cli") is None:
        pytest.skip("no redis-cli on the PATH: redis_cli.sh is not run")
    ids = writer.put(T, 5)
    done = subprocess.run(
        ["sh", str(EXAMPLES / "redis_cli.sh"), redis_url, T], capture_output=True, text=True, timeout=20, check=True
    )
    assert T in done.stdout and "ERR" not in done.stdout + done.stderr
    assert done.stdout.count(ids[4]) == 2 and done.stdout.count(ids[0]) == 3


def test_every_recipe_is_named() -> None:
    names = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert names == {*RUN, "redis_cli.sh"}
    page = (ROOT / "docs" / "consuming.md").read_text(encoding="utf-8")
    for name in names:
        assert f"../examples/{name}" in page, name


PAGES = ["README.md", "docs/consuming.md"]


@pytest.mark.parametrize("page", PAGES)
async def test_typed_reader_on_the_pages_reads(
    page: str,
    redis_url: str,
    writer: Writer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    (code,) = [
        code for code in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if "relay.client" in code
    ]
    code = code.replace("redis://127.0.0.1:6379", redis_url)
    scope: dict[str, Any] = {}
    exec(compile("async def main():\n" + textwrap.indent(code, "    "), page, "exec"), scope)
    monkeypatch.chdir(tmp_path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scope["main"])
        printed = ""
        with anyio.fail_after(10):
            while "quotes.EUR-USD 1" not in printed or "missing in quotes.EUR-USD" not in printed:
                writer.put("quotes.EUR-USD")
                writer.skip("quotes.EUR-USD", 1)
                await anyio.sleep(0.02)
                printed += capsys.readouterr().out
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("page", PAGES)
def test_code_on_the_pages_is_of_the_recipes(page: str) -> None:
    """Code blocks in their languages are parts of the recipes, or of what tests/test_client.py shows."""
    text = (ROOT / page).read_text(encoding="utf-8")
    sources = "\n".join(path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.iterdir()) if path.is_file())
    found = re.findall(r"^```(python|js|java|go)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found
    for language, code in found:
        if "relay.client" not in code:
            assert code.strip("\n") in sources, f"{page}: this {language} is in no file of examples/:\n{code}"
