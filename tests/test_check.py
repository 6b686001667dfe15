"""`relay check` through click's runner: what it prints, where, and the exit code."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from relay.__main__ import main

ROOT = Path(__file__).parent.parent
GOOD = """\
name: desk
redis: {url: "rediss://u:hunter2@db.example:6380/1", prefix: p.}
providers:
  coinbase:
    quotes: [BTC-USD]
    trades: [BTC-USD, ETH-USD]
  demo:
    type: coinapi
    simulate: true
    quotes: [BITSTAMP_SPOT_*]
  coinapi:
    api_key: ${COINAPI_API_KEY}
    url: wss://api-emea.coinapi.io/v1/
    books: {20: [KRAKEN_SPOT_BTC_EUR]}
"""
BAD = "name: X\nproviders: {coinbse: {quotes: [A]}}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("COINAPI_API_KEY", "s3cret-key")
    return tmp_path


def check(*args: str, given: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["check", *args], input=given)


def test_good_file_shows_what_would_run(folder: Path) -> None:
    (folder / "relay.yaml").write_text(GOOD)
    result = check()
    assert result.exit_code == 0
    assert result.stdout == (
        """\
relay.yaml is fine.

relay   desk
redis   rediss://u:***@db.example:6380/1
prefix  p.

coinbase: Coinbase Exchange
  connection 1 to wss://ws-feed.exchange.coinbase.com: quotes 1, trades 2

demo: CoinAPI, SIMULATED: made-up prices
  connection 1 to simulator: quotes 1

coinapi: CoinAPI
  connection 1 to wss://api-emea.coinapi.io/v1/: books 1

7 topics
  p.quotes.BTC-USD                coinbase BTC-USD
  p.trades.BTC-USD                coinbase BTC-USD
  p.trades.ETH-USD                coinbase ETH-USD
  sim.p.quotes.{symbol}           demo BITSTAMP_SPOT_*
  p.books.coinapi.KRAKEN.BTC-EUR  coinapi KRAKEN_SPOT_BTC_EUR
  p.status.desk
  p.deadletter.desk
"""
    )
    assert result.stderr == (
        "relay.yaml:2:14: redis.url: holds a password as it is; put it in the environment: ${REDIS_URL} (warning)\n"
    )
    assert "hunter2" not in result.output and "s3cret" not in result.output


def test_good_file_as_json(folder: Path) -> None:
    (folder / "my.yaml").write_text(GOOD)
    result = check("-c", "my.yaml", "--json")
    assert result.exit_code == 0
    assert "hunter2" not in result.output and "s3cret" not in result.output
    found = json.loads(result.stdout)
    assert (found["ok"], found["name"], found["redis"]["target"]) == (True, "desk", "rediss://u:***@db.example:6380/1")
    assert [(p["name"], p["type"], p["simulated"]) for p in found["providers"]] == [
        ("coinbase", "coinbase", False),
        ("demo", "coinapi", True),
        ("coinapi", "coinapi", False),
    ]
    assert found["providers"][0]["connections"] == [
        {
            "label": "1",
            "url": "wss://ws-feed.exchange.coinbase.com",
            "subscriptions": 3,
            "channels": {"quotes": 1, "trades": 2},
        }
    ]
    assert found["topics"][3] == {
        "name": "sim.p.quotes.{symbol}",
        "kind": "quotes",
        "provider": "demo",
        "raw_symbol": "BITSTAMP_SPOT_*",
        "pattern": True,
    }
    assert [(w["line"], w["column"], w["path"]) for w in found["warnings"]] == [(2, 14, "redis.url")]


def test_wrong_file_shows_every_error(folder: Path) -> None:
    (folder / "relay.yaml").write_text(BAD)
    result = check()
    assert (result.exit_code, result.stdout) == (78, "")
    assert result.stderr == (
        "relay.yaml:1:7: name: 'X' does not fit; expected 1 to 32 characters of [a-z0-9_-]\n"
        "relay.yaml:2:13: providers.coinbse: is no provider; did you mean `coinbase`? "
        "(a name of your own needs `type:`)\n"
        "relay: 2 errors in relay.yaml\n"
    )


def test_wrong_file_as_json(folder: Path) -> None:
    (folder / "relay.yaml").write_text(BAD)
    result = check("--json")
    assert result.exit_code == 78
    found = json.loads(result.stdout)
    assert found["ok"] is False
    assert found["errors"][0] == {
        "file": "relay.yaml",
        "line": 1,
        "column": 7,
        "path": "name",
        "text": "'X' does not fit; expected 1 to 32 characters of [a-z0-9_-]",
    }
    assert len(found["errors"]) == 2


def test_missing_file_names_the_cure(folder: Path) -> None:
    result = check("-c", "nope.yaml")
    assert (result.exit_code, result.stdout) == (78, "")
    assert result.stderr.startswith("nope.yaml: there is no such file; name one with -c FILE")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"name: \xff", "relay.yaml:1:7: byte 0xff is not UTF-8; save the file as UTF-8\n"),
        (b"#" * 1_100_000, "relay.yaml: is larger than 1,048,576 bytes, the most that is read\n"),
        (b"", "relay.yaml: is empty; it needs `providers:` with at least one provider\n"),
    ],
)
def test_unreadable_content(folder: Path, content: bytes, expected: str) -> None:
    (folder / "relay.yaml").write_bytes(content)
    result = check()
    assert result.exit_code == 78
    assert result.stderr == expected + "relay: 1 error in relay.yaml\n"


def test_folder_in_place_of_the_file(folder: Path) -> None:
    result = check("-c", ".")
    assert result.exit_code == 78
    assert result.stderr.startswith(".: cannot be read: ")


def test_standard_input(folder: Path) -> None:
    assert check("-c", "-", given=GOOD).exit_code == 0
    result = check("-c", "-", given=BAD)
    assert result.exit_code == 78
    assert result.stderr.startswith("<stdin>:1:7: name: ")


def test_secret_files_lie_beside_the_config(folder: Path) -> None:
    (folder / "etc").mkdir()
    (folder / "etc" / "coinapi.key").write_text("from-a-file\n")
    config = folder / "etc" / "relay.yaml"
    config.write_text("providers: {coinapi: {api_key_file: coinapi.key, quotes: [A_SPOT_B_C]}}")
    result = check("-c", str(config))
    assert result.exit_code == 0 and "from-a-file" not in result.output
    (folder / "etc" / "coinapi.key").write_bytes(b"x" * 70_000)
    result = check("-c", str(config))
    assert result.exit_code == 78
    assert "cannot read 'coinapi.key': larger than 65536 bytes" in result.stderr


def test_many_topics_are_for_json(folder: Path) -> None:
    symbols = ", ".join(f"A{n}-USD" for n in range(60))
    (folder / "relay.yaml").write_text(f"providers: {{coinbase: {{quotes: [{symbols}]}}}}")
    assert check().stdout.splitlines()[-1] == "  ... and 22 more; --json lists all"
    assert len(json.loads(check("--json").stdout)["topics"]) == 62


def test_shipped_file_is_fine(folder: Path) -> None:
    result = check("-c", str(ROOT / "relay.yaml"))
    assert (result.exit_code, result.stderr) == (0, "")
    to_simulator = result.stdout.count(" to simulator: ")  # a provider has one connection at least
    assert result.stdout.count("SIMULATED") >= 7 and to_simulator == result.stdout.count("  connection ")


def test_unknown_option_is_wrong_usage(folder: Path) -> None:
    assert check("--jsn").exit_code == 2


def test_help_shows_an_example() -> None:
    assert "relay check -c" in check("--help").stdout
