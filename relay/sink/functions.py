"""The function library `append.lua`: its text and the names in it carry the hash of the text."""

import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from relay.sink.link import Link, ReplyError


class Library(NamedTuple):
    """What FUNCTION LOAD takes, and the names to call: append, fence, lease."""

    name: str
    text: str
    names: tuple[str, str, str]


@cache
def library() -> Library:
    """Read the library. Two versions of the relay meet on one server without touching each other's functions."""
    source = files("relay").joinpath("append.lua").read_text("utf-8")
    mark = hashlib.sha256(source.encode()).hexdigest()[:12]
    text = source.replace("@HASH@", mark)
    return Library(f"relay_{mark}", text, (f"relay_append_{mark}", f"relay_fence_{mark}", f"relay_lease_{mark}"))


async def load(link: Link) -> None:
    """Load the library unless this server has it; never replaces anybody's. Raises: LinkLost, ReplyError."""
    wanted = library()
    if not await link.call("FUNCTION", "LIST", "LIBRARYNAME", wanted.name):
        try:
            await link.call("FUNCTION", "LOAD", wanted.text)
        except ReplyError as error:
            if "already exists" not in str(error):  # another relay of this version was faster
                raise
