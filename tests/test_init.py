"""relay init writes what relay check accepts; relay symbols lists what providers offer, here from the simulator."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from relay.__main__ import main
from relay.cli.init import keys_of
from relay.config import Config, load
from relay.providers import PROVIDERS
from relay.simulator import SIDES
from relay.simulator.base import Answer, SideSpec
from relay.simulator.server import Simulator


def relay(*args: str, **kwargs: Any) -> Result:
    return CliRunner().invoke(main, list(args), **kwargs)


def written(*args: str) -> str:
    result = relay("init", *args, "-o", "-")
    assert result.exit_code == 0, result.output
    return result.stdout


def read(text: str) -> Config:
    environ = {variable: "k" for spec in PROVIDERS.values() for _, variable in keys_of(spec)[0]}

    def unread(path: str) -> str:
        raise FileNotFoundError(path)

    return load(text, "relay.yaml", environ=environ, read_file=unread, providers=PROVIDERS)


# -- relay init --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("channels", ["", "quotes,trades,bars,books"])
def test_check_accepts_what_init_writes(name: str, channels: str, tmp_path: Path) -> None:
    path = tmp_path / "relay.yaml"
    result = relay("init", "--provider", name, *(["--channels", channels] if channels else []), "-o", str(path))
    assert result.exit_code == 0, result.output
    needed = keys_of(PROVIDERS[name])[0]
    assert all(f"export {variable}=..." in result.stderr for _, variable in needed)
    checked = relay("check", "-c", str(path), "--json", env={variable: "a-key" for _, variable in needed})
    found = json.loads(checked.stdout)
    assert found["ok"] and [one["type"] for one in found["providers"]] == [name] and found["warnings"] == []
    if needed:
        unset = {variable: None for _, variable in needed}
        refused = relay("check", "-c", str(path), env=unset)
        assert refused.exit_code == 78 and PROVIDERS[name].key_url in refused.output


def test_all_providers_fit_into_one_file() -> None:
    flags = [flag for name in PROVIDERS for flag in ("--provider", name)]
    config = read(written(*flags))
    assert set(config.providers) == set(PROVIDERS)
    assert not any(provider.options.simulate for provider in config.providers.values())
    assert read(written(*flags, "--simulate")).all_simulated


def test_canonical_symbols_become_raw_ones() -> None:
    wanted = ["kraken", "coinbase", "binance=NKN-USDT,btcusdt", "tickatlas=EUR-USD", "coinapi"]
    flags = [flag for one in wanted for flag in ("--provider", one)]
    config = read(written(*flags, "--venue", "kraken", "--symbols", "btc-usd,ETH-USD"))
    assert {name: provider.options.quotes for name, provider in config.providers.items()} == {
        "kraken": ("BTC/USD", "ETH/USD"),
        "coinbase": ("BTC-USD", "ETH-USD"),
        "binance": ("NKNUSDT", "BTCUSDT"),
        "tickatlas": ("EURUSD",),
        "coinapi": ("KRAKEN_SPOT_BTC_USD", "KRAKEN_SPOT_ETH_USD"),
    }
    assert config.providers["binance"].options.symbols == {"NKNUSDT": "NKN-USDT"}
    assert config.topics["quotes"] == "quotes.{provider}[.{venue}].{symbol}"


def test_raw_symbols_stay_and_one_source_needs_no_templates() -> None:
    config = read(
        written("--provider", "coinapi=KRAKEN_SPOT_BTC_USD,BINANCE_SPOT_BTC_USDT", "--provider", "etoro=1001")
    )
    assert config.providers["coinapi"].options.quotes == ("KRAKEN_SPOT_BTC_USD", "BINANCE_SPOT_BTC_USDT")
    assert config.providers["etoro"].options.quotes == ("1001",)
    assert not config.topics


def test_channels_have_their_parameters() -> None:
    config = read(written("--provider", "kraken", "--channels", "bars:5m,books:10"))
    options = config.providers["kraken"].options
    assert (list(options.bars), list(options.books), options.quotes) == (["5m"], ["10"], ())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--provider", "krakem"), "Did you mean 'kraken'?"),
        (("--provider", "coinapi=BTC-USD"), "--venue"),
        (("--provider", "kraken=BTC-USD-PERP"), "no pair"),
        (("--provider", "kraken", "--channels", "books:7"), "has no books of 7"),
        (("--provider", "kraken", "--channels", "greeks"), "has none of greeks"),
        (("--provider", "kraken", "--channels", "gossip"), "No channel 'gossip'"),
        (("--provider", "kraken", "--channels", "quotes:5m"), "takes no '5m'"),
        (("--provider", "kraken", "--provider", "kraken"), "stands twice"),
        (("--provider", "kraken=BTC/USD,BTC-USD", "--provider", "binance=NKNUSDT,NKN-USDT"), "under two names"),
    ],
)
def test_wrong_wishes_are_wrong_usage(args: tuple[str, ...], said: str) -> None:
    result = relay("init", *args, "-o", "-")
    assert result.exit_code == 2 and said in " ".join(result.output.split()), result.output


def test_what_check_would_refuse_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "relay.yaml"
    result = relay("init", "--provider", "kraken=XBT/USD", "-o", str(path))
    assert result.exit_code == 78 and "BTC" in result.output and not path.exists()


def test_a_file_is_replaced_only_with_force(tmp_path: Path) -> None:
    path = tmp_path / "relay.yaml"
    path.write_text("mine")
    args = ("init", "--provider", "coinbase", "-o", str(path))
    result = relay(*args)
    assert result.exit_code == 1 and "--force" in result.output and path.read_text() == "mine"
    assert relay(*args, "--force").exit_code == 0
    assert read(path.read_text()).providers["coinbase"].options.trades == ("BTC-USD", "ETH-USD")


def test_without_a_provider_it_asks(tmp_path: Path) -> None:
    path = tmp_path / "relay.yaml"
    answers = [
        "kraken, nobody",
        "kraken, coinapi",
        "BTC-USD",
        "quotes, gossip",
        "quotes, books",
        "ETH-USD",
        "BITSTAMP",
        "",
        "",
    ]
    result = relay("init", "-o", str(path), input="\n".join(answers) + "\n")
    assert result.exit_code == 0, result.output
    config = read(path.read_text())
    kraken, coinapi = config.providers["kraken"].options, config.providers["coinapi"].options
    assert (kraken.quotes, list(kraken.books)) == (("BTC/USD",), ["25"])
    assert (coinapi.quotes, coinapi.trades) == (("BITSTAMP_SPOT_ETH_USD",),) * 2
    assert config.redis.url == "embedded"


def test_a_server_of_ones_own_is_named() -> None:
    assert read(written("--provider", "kraken", "--redis", "redis://127.0.0.1:6390")).redis.url.endswith(":6390")


# -- relay symbols -----------------------------------------------------------------------------------------------------


async def listed(simulator: Simulator, provider: str, *args: str, **kwargs: Any) -> Result:
    """Run the command beside the simulator, in a thread: it has an event loop of its own."""
    import anyio

    rest = () if "--rest-url" in args or "-c" in args else ("--rest-url", simulator.rest_url(provider))
    return await anyio.to_thread.run_sync(lambda: relay("symbols", provider, *args, *rest, **kwargs))


@pytest.mark.parametrize(("provider", "raw"), [("binance", "BTCUSDT"), ("kraken", "BTC/USD"), ("coinbase", "BTC-USD")])
async def test_symbols_are_listed_canonical_and_raw(provider: str, raw: str) -> None:
    async with Simulator([provider]) as simulator:
        result = await listed(simulator, provider)
        lines = [line.split() for line in result.stdout.splitlines()]
        assert result.exit_code == 0 and [PROVIDERS[provider].rule(raw)[0], raw] in lines
        assert f"{len(lines)} of {len(lines)} symbols" in result.stderr
        part = await listed(simulator, provider, "btc-*", "--json")
        found = json.loads(part.stdout)
        assert raw in {one["raw"] for one in found} and all(one["symbol"].startswith("BTC-") for one in found)
        assert (await listed(simulator, provider, raw[:5].lower())).exit_code == 0
        nothing = await listed(simulator, provider, "NOSUCH")
        assert nothing.exit_code == 1 and nothing.stdout == "" and "0 of" in nothing.stderr


async def test_symbols_that_do_not_trade_say_so() -> None:
    async with Simulator(["binance"]) as simulator:
        result = await listed(simulator, "binance", "RUNE-USDT")
        assert result.stdout.split() == ["RUNE-USDT", "RUNEUSDT", "not", "trading"]


async def test_a_section_of_the_config_says_where_to_ask(tmp_path: Path) -> None:
    async with Simulator(["binance"]) as simulator:
        path = tmp_path / "relay.yaml"
        path.write_text(
            f"providers:\n  mine:\n    type: binance\n    url: {simulator.url('binance')}\n"
            f"    rest_url: {simulator.rest_url('binance')}\n    quotes: [BTCUSDT]\n"
            "    symbols: {BTCUSDT: XBT-USDT}\n"
        )
        result = await listed(simulator, "mine", "BTCUSDT", "-c", str(path))
        assert result.stdout.split() == ["XBT-USDT", "BTCUSDT"], result.output
        wrong = await listed(simulator, "binance", "-c", str(path))
        assert wrong.exit_code == 2 and "mine" in wrong.output


async def test_coinapi_lists_what_begins_with_something() -> None:
    seen: list[tuple[str, dict[str, str]]] = []

    def rest(world: Any, method: str, target: str, headers: Any, body: bytes, now_ns: int) -> Answer:
        seen.append((target, dict(headers)))
        rows = [{"symbol_id": "KRAKEN_SPOT_BTC_USD", "symbol_type": "SPOT"}, {"symbol_id": "KRAKEN_SPOT_ETH_USD"}]
        return Answer(200, json.dumps(rows).encode())

    sides = {"coinapi": SideSpec(SIDES["coinapi"].side, rest=rest)}
    async with Simulator(["coinapi"], sides=sides) as simulator:
        key = {"COINAPI_API_KEY": "canary-key"}
        result = await listed(simulator, "coinapi", "KRAKEN_SPOT_B*", env=key)
        assert result.stdout.split() == ["BTC-USD", "KRAKEN_SPOT_BTC_USD", "KRAKEN", "spot"]
        assert (
            seen[0][0] == "/v1/symbols?filter_symbol_id=KRAKEN_SPOT_B" and seen[0][1]["x-coinapi-key"] == "canary-key"
        )
        assert "how they begin" in (await listed(simulator, "coinapi", env=key)).output
        without = await listed(simulator, "coinapi", "KRAKEN", env={"COINAPI_API_KEY": None})
        assert without.exit_code == 1 and "COINAPI_API_KEY" in without.output and len(seen) == 1


def test_providers_without_a_list_say_so() -> None:
    for name, spec in PROVIDERS.items():
        if spec.listing is None:
            result = relay("symbols", name)
            assert result.exit_code == 1 and f"{spec.title} has no list" in result.output


def test_offline_is_one_line() -> None:
    result = relay("symbols", "binance", "--rest-url", "http://127.0.0.1:1")
    assert result.exit_code == 1 and result.output.count("\n") == 1
    assert (
        result.output.startswith("relay: Binance gave no list of symbols: 127.0.0.1:1/") and "offline" in result.output
    )
    assert "Did you mean 'binance'" in relay("symbols", "binanse").output


async def test_refusals_and_nonsense_are_told() -> None:
    bodies = iter([(451, b'{"msg":"restricted location"}'), (200, b"<html>")])
    sides = {"binance": SideSpec(SIDES["binance"].side, rest=lambda *_: Answer(*next(bodies)))}
    async with Simulator(["binance"], sides=sides) as simulator:
        refused, nonsense = [await listed(simulator, "binance") for _ in range(2)]
        assert (refused.exit_code, nonsense.exit_code) == (1, 1)
        assert "HTTP 451" in refused.output and "restricted location" in refused.output
        assert "cannot be read" in nonsense.output
