"""What all tests share: the event loop, and the switch that rewrites recorded outputs."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite `out` and `send` in tests/frames/*.jsonl")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
