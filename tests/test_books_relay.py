"""Books through a whole relay: lost updates are said in band, resynced and followed by a snapshot; late readers."""

import json
from pathlib import Path
from typing import Any

import pytest
import redis
from relays import config_of, entries, relay_of, until
from test_books import Reference
from test_recordings import checksum

from relay.simulator.faults import Faults
from relay.simulator.server import Simulator

CONFIG = """
name: t
redis: {{url: {redis}, stream_length_max: {length}}}
providers:
  {name}:
    url: {url}
{section}
"""


def config(name: str, section: str, simulator: Simulator, redis_url: str, folder: Path, length: int = 10_000) -> Any:
    return config_of(
        CONFIG.format(redis=redis_url, length=length, name=name, url=simulator.url(name), section=section), folder
    )


def follow(messages: list[dict[str, Any]]) -> tuple[Reference | None, int]:
    """Read a topic of books as a consumer does; gives the book and how often it was stale."""
    book: Reference | None = None
    stale = 0
    for message in messages:
        if message["type"] == "status":
            if message["event"] == "stale":
                book, stale = None, stale + 1
            continue
        if message["type"] == "book_snapshot":
            book = Reference(None)
        assert book is not None, "no delta between a doubt and the next snapshot"
        book.apply(*(tuple(map(tuple, message[side])) for side in ("bids", "asks")))
        assert not book.crossed
        assert "checksum" not in message or checksum(book) == message["checksum"]
    return book, stale


async def test_a_lost_update_is_said_and_healed(redis_url: str, tmp_path: Path) -> None:
    section = "    books: {10: [BTC/USD], 25: [ETH/USD]}\n    quotes_from_books: [BTC/USD]\n    quotes: [ETH/USD]"
    topics = ["books.kraken.BTC-USD", "books.kraken.ETH-USD"]

    def healed() -> bool:
        seen = [[m.get("event", m["type"]) for _, m in entries(redis_url, topic)] for topic in topics]
        return all("stale" in one and "book_delta" in one[one.index("stale") :] for one in seen)

    async with Simulator(["kraken"], rate=200, faults=Faults(jump_every=50)) as simulator:
        async with relay_of(config("kraken", section, simulator, redis_url, tmp_path)) as running:
            await until(healed)
            feed = running.bridge.providers["kraken"].feeds[0]
            assert feed.stats.opened == 1, "a doubt about one book costs no session"
    for topic in topics:
        found = [m for _, m in entries(redis_url, topic)]
        _, stale = follow(found)
        assert stale
        first = next(m for m in found if m.get("event") == "stale")
        assert first["code"] == "checksum" and first["action"] == "resync" and first["topic"] == topic
        behind = found[found.index(first) + 1 :]
        assert [m.get("event", m["type"]) for m in behind][:2] == ["fresh", "book_snapshot"]
    quotes = [m for _, m in entries(redis_url, "quotes.BTC-USD")]
    assert {"quote", "status"} == {m["type"] for m in quotes}
    tops = [(m.get("bid"), m.get("bid_size"), m.get("ask"), m.get("ask_size")) for m in quotes if m["type"] == "quote"]
    assert len(tops) > 5 and all(None not in top for top in tops)
    status = [m["event"] for _, m in entries(redis_url, "status.t")]
    assert "stale" in status and "fresh" in status


async def test_a_late_reader_finds_the_last_snapshot_by_the_writer_key(redis_url: str, tmp_path: Path) -> None:
    topic = "books.coinbase.BTC-USD"
    async with Simulator(["coinbase"], rate=200) as simulator:
        whole = config("coinbase", "    books: {full: [BTC-USD]}", simulator, redis_url, tmp_path, length=40)
        async with relay_of(whole) as running:
            topics = running.bridge.outbox.topics
            await until(lambda: topic in topics and topics[topic].seq > 150)
    found = entries(redis_url, topic)
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        begin = client.hget(f"relay:writer:{{{topic}}}", "snapshot")
        late = [json.loads(fields["data"]) for _, fields in client.xrange(topic, min=str(begin))]
    assert [i for i, m in found if m["type"] == "book_snapshot"][-1] == begin
    assert late[0]["type"] == "book_snapshot"
    assert len(late) <= 40 // 2 + 2, "a snapshot at least every half length of the stream (its end is a status)"
    end, _ = follow([m for m in late if m["type"] != "status"])
    whole_book, _ = follow([m for _, m in found if m["type"] != "status"][_first_snapshot(found) :])
    assert end is not None and whole_book is not None and end.best() == whole_book.best()


def _first_snapshot(found: list[tuple[str, dict[str, Any]]]) -> int:
    data = [m for _, m in found if m["type"] != "status"]
    return next(i for i, m in enumerate(data) if m["type"] == "book_snapshot")


@pytest.mark.parametrize(("name", "depth", "raw"), [("kraken", "10", "BTC/USD"), ("coinbase", "full", "BTC-USD")])
async def test_a_lost_connection_leaves_no_good_book(
    redis_url: str, tmp_path: Path, name: str, depth: str, raw: str
) -> None:
    topic = f"books.{name}.BTC-USD"

    def events() -> list[str]:
        return [m.get("event", m["type"]) for _, m in entries(redis_url, topic)]

    async with Simulator([name], rate=100) as simulator:
        section = f"    books: {{{depth}: [{raw}]}}"
        async with relay_of(config(name, section, simulator, redis_url, tmp_path)):
            await until(lambda: "book_delta" in events())
            assert simulator.drop(name) == 1
            await until(lambda: "book_delta" in events()[events().index("stale") :] if "stale" in events() else False)
    order = events()
    at = order.index("stale")
    assert order[at : at + 4] == ["stale", "gap", "fresh", "book_snapshot"]
    follow([m for _, m in entries(redis_url, topic)])
