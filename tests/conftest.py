"""What all tests share: the event loop, the server, and the switch that rewrites recorded outputs."""

import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
import redis
from servers import given_url

from relay.embedded import EmbeddedServer


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite `out` and `send` in tests/frames/*.jsonl")


@pytest.fixture
def timed() -> Iterator[None]:
    """Print how long a test took, beside its figures."""
    begun = time.monotonic()
    yield
    print(f"{time.monotonic() - begun:.1f} s")


@pytest.fixture
def quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions tick fifty times a second."""
    monkeypatch.setattr("relay.feed.session.TICK_SECS", 0.02)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def _server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for the whole run: the bundled one, or the one that RELAY_TEST_REDIS_URL names (it is emptied!)."""
    other = given_url()
    if other:
        yield other
        return
    folder: Path = tmp_path_factory.mktemp("redis")
    server = EmbeddedServer(folder, port=21_000)
    # no task watches over it: a server that dies during the tests is to be seen
    yield anyio.run(server.start)
    anyio.run(server.stop)


@pytest.fixture
def redis_url(_server_url: str) -> str:
    """URL of a real, empty server."""
    with redis.Redis.from_url(_server_url) as client:
        client.flushall()
    return _server_url
