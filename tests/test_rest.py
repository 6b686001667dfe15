"""Files that a provider may read through `relay.feed.rest`: those that its own options name, nothing else."""

import os
from pathlib import Path

import pytest

from relay.feed.rest import Rest, files_of
from relay.providers.aries.options import AriesOptions
from relay.providers.base import Reply, Request


async def ask(path: str | Path, *files: str | Path, method: str = "GET", bytes_max: int = 1000) -> Reply:
    rest = Rest(map(str, files))
    try:
        return await rest.call(Request("token", method, f"file://{path}", body_bytes_max=bytes_max), lambda: None)
    finally:
        await rest.close()


async def test_a_file_that_the_options_name_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "to ken%20?.txt"
    path.write_bytes(b" a.b.c\n")
    assert await ask(path, path) == Reply("token", 200, b" a.b.c\n")


async def test_a_file_that_no_option_names_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "shadow"
    path.write_bytes(b"root")
    for reply in (await ask(path), await ask(path, tmp_path / "token"), await ask(path, path, method="POST")):
        assert reply.status == 0 and not reply.body and "own options name" in reply.error


async def test_what_cannot_be_read_is_an_answer_with_its_reason(tmp_path: Path) -> None:
    path, pipe = tmp_path / "token", tmp_path / "pipe"
    gone = await ask(path, path)
    assert gone.status == 0 and gone.error == f"{path}: No such file or directory"
    path.write_bytes(b"x" * 20)
    large = await ask(path, path, bytes_max=10)
    assert large.status == 0 and "more than 10 bytes" in large.error
    os.mkfifo(pipe)
    for odd in (tmp_path, pipe):
        reply = await ask(odd, odd)
        assert reply.status == 0 and ("is not a file" in reply.error or "Is a directory" in reply.error)


@pytest.mark.parametrize("options", [None, AriesOptions(token="t")])
def test_options_without_a_file_allow_none(options: AriesOptions | None) -> None:
    assert files_of(options) == frozenset()


def test_only_options_named_as_files_count() -> None:
    assert files_of(AriesOptions(token_file="/run/token", account="main")) == {"/run/token"}
