"""relay.yaml: the shipped one loads, values and secrets are read, topics are foretold, every option is documented.

What is refused, and how, stands in test_config_errors.py.
"""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made_up import ALPHA, BetaOptions, Link, alpha, beta, read, read_file, with_alpha

from relay.config import (
    LogConfig,
    OutboxConfig,
    RedisConfig,
    Settings,
    SimulatorConfig,
    SpoolConfig,
    data_dir_of,
    load,
    secrets_of,
    shown_url,
    topics_of,
)
from relay.config.document import Node, Problems
from relay.config.values import Reader, fields_of
from relay.providers import PROVIDERS
from relay.providers.base import Planned, ProviderSpec, Subscription
from relay.secrecy import secret_options

ROOT = Path(__file__).parent.parent


# -- what is right ---------------------------------------------------------------------------------------------------


def test_shipped_file_loads_without_any_variable() -> None:
    config = load(
        (ROOT / "relay.yaml").read_bytes(), "relay.yaml", environ={}, read_file=read_file, providers=PROVIDERS
    )
    assert {p.spec.name for p in config.providers.values()} == set(PROVIDERS)
    assert config.all_simulated
    assert config.redis.url == "embedded"
    assert config.warnings == []
    assert data_dir_of(config) == os.path.join(".relay", "sim")
    assert secrets_of(config) == []


def test_smallest_file_has_the_defaults() -> None:
    config = read("providers: {alpha: {quotes: [A]}}")
    assert (config.name, config.redis, config.outbox, config.log) == (
        "relay",
        RedisConfig(),
        OutboxConfig(),
        LogConfig(),
    )
    assert (config.merge, config.state_dir, config.simulator, config.warnings) == (
        False,
        ".relay",
        SimulatorConfig(),
        [],
    )
    provider = config.providers["alpha"]
    assert provider.subscriptions == [Subscription("quotes", "A")]
    assert provider.connections == [Planned("1", (Subscription("quotes", "A"),))]
    assert (provider.line, provider.account) == (1, "main")


def test_scalars_are_typed_by_their_field() -> None:
    text = alpha("quotes: [ON, NO, 1001, 12:30, 0x10, 1e3, null, ~, 1_000, 2020-01-01, 'true', .inf]")
    assert [sub.raw for sub in read(text).providers["alpha"].subscriptions] == [
        "ON", "NO", "1001", "12:30", "0x10", "1e3", "null", "~", "1_000", "2020-01-01", "true", ".inf",
    ]  # fmt: skip


def test_every_kind_of_value_is_read() -> None:
    config = read(
        beta(
            "level: 3\nratio: 0.25\nnote: abc\norders: true\naccount: desk-1\ncodes: {a: 1, b: 2_000}\n"
            "link: {host: h, weight: '9'}\nquotes: ['X:A/B']"
        ),
        K="k1",
    )
    options = config.providers["beta"].options
    assert isinstance(options, BetaOptions)
    assert (options.level, options.ratio, options.note, options.codes) == (3, 0.25, "abc", {"a": 1, "b": 2000})
    assert options.link == Link(host="h", weight=9)
    assert config.providers["beta"].account == "desk-1"
    assert [t.name for t in topics_of(config)] == [
        "quotes.A-B", "orders.desk-1", "deadletter.desk-1", "status.relay", "deadletter.relay",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("written", "environ", "value"),
    [
        ("${PREFIX}", {"PREFIX": "a."}, "a."),
        ("'${PREFIX}'", {"PREFIX": ""}, ""),
        ("x.${PREFIX:-b}.", {}, "x.b."),
        ("${PREFIX:-b}", {"PREFIX": ""}, "b"),
        ("${PREFIX:-b}", {"PREFIX": "c"}, "c"),
        ("${PREFIX:?why}", {"PREFIX": "c"}, "c"),
        ("${A}${B}", {"A": "1", "B": "2"}, "12"),
        ('""', {}, ""),
    ],
)
def test_variables(written: str, environ: dict[str, str], value: str) -> None:
    assert read(with_alpha(f"redis:\n  prefix: {written}\n"), **environ).redis.prefix == value


def test_escaped_variable_stays_as_it_is_and_values_are_not_expanded_again() -> None:
    config = read(with_alpha("state_dir: $${HOME}/$5/${A}\n"), A="${B}")
    assert config.state_dir == "${HOME}/$5/${B}"


def test_numbers_and_switches_take_variables() -> None:
    config = read(with_alpha("merge: ${M:-true}\nredis: {stream_length_max: '${N}'}\n"), N="5")
    assert (config.merge, config.redis.stream_length_max) == (True, 5)


def test_byte_order_mark_and_windows_line_ends_are_taken() -> None:
    assert read(b"\xef\xbb\xbfname: a\r\nproviders: {alpha: {quotes: [A]}}\r\n").name == "a"


def test_own_name_of_a_provider() -> None:
    config = read("providers: {desk_2: {type: alpha, quotes: [A]}}")
    assert config.providers["desk_2"].spec is ALPHA


# -- secrets -----------------------------------------------------------------------------------------------------


def test_secret_by_variable_by_file_and_of_the_server_are_known_for_redaction() -> None:
    text = (
        "redis: {url: 'rediss://u:p%40ss@h/1'}\nproviders:\n  beta: {api_key_file: key, quotes: ['X:A']}\n"
        "  b2: {type: beta, api_key: '${K}', books: {5: ['X:A']}}\n"
    )
    config = read(text, K="k-1")
    assert secrets_of(config) == ["p%40ss", "p@ss", "from-a-file", "k-1"]
    shown = repr(config) + str(config) + str(config.providers["beta"].options.__rich_repr__())
    assert not any(secret in shown for secret in secrets_of(config))
    assert "rediss://u:***@h/1" in shown


def test_password_of_the_server() -> None:
    config = read(with_alpha("redis: {url: 'unix:///run/s?db=2', username: u, password_file: key}\n"))
    assert (config.redis.username, config.redis.password) == ("u", "from-a-file")
    assert secrets_of(config) == ["from-a-file"]
    assert "from-a-file" not in repr(config)


def test_simulated_provider_needs_no_key() -> None:
    config = read("providers: {beta: {simulate: true, quotes: ['X:A']}}")
    options = config.providers["beta"].options
    assert isinstance(options, BetaOptions) and options.api_key == "simulated"
    assert secrets_of(config) == []


def warnings(text: str, **environ: str) -> list[str]:
    return [str(w).removeprefix("relay.yaml:") for w in read(text, **environ).warnings]


def test_warnings_name_what_works_and_should_be_looked_at() -> None:
    assert warnings("providers: {beta: {api_key: abc, quotes: ['X:A'], symbols: {'X:B': C}}}") == [
        "1:29: providers.beta.api_key: stands in the file as it is; put it in the environment: ${BETA_API_KEY}",
        "1:61: providers.beta.symbols.X:B: is not subscribed to",
    ]
    assert warnings("providers: {beta: {simulate: true, api_key: abc, quotes: ['X:A']}}") == []
    assert warnings(with_alpha("redis: {url: 'redis://:pw@h'}\n")) == [
        "1:14: redis.url: holds a password as it is; put it in the environment: ${REDIS_URL}",
        "1:14: redis.url: is not encrypted; take rediss:// unless the network between is yours",
    ]
    assert warnings(with_alpha("redis: {url: '${U}'}\n"), U="redis://:pw@127.0.0.2:1/0") == []
    assert warnings(with_alpha("redis: {url: 'unix:///s', password: pw, port: 1}\n")) == [
        "1:37: redis.password: stands in the file as it is; put it in the environment: ${REDIS_PASSWORD}",
        "1:41: redis.port: has no effect with a server of your own",
    ]
    assert warnings(with_alpha("redis: {ca_file: x}\n")) == [
        "1:9: redis.ca_file: has no effect with the embedded server"
    ]
    assert warnings(alpha("quotes: [A]\nurl: ws://feed.example/x")) == [
        "4:10: providers.alpha.url: is not encrypted, keys included; take wss://"
    ]
    for here in ("ws://localhost:1", "ws://127.0.0.1", "ws://[::1]/", "wss://feed.example"):
        assert warnings(alpha(f"quotes: [A]\nurl: {here}")) == []


def test_shown_url_keeps_no_secret() -> None:
    assert shown_url("redis://:pw@h:1/0") == "redis://:***@h:1/0"
    assert shown_url("rediss://u:pw@[::1]:1/0?password=x") == "rediss://u:***@[::1]:1/0"
    assert shown_url("unix:///run/x?db=1") == "unix:///run/x"
    assert shown_url("wss://h/v1?apikey=x") == "wss://h/v1"
    assert shown_url("redis://h:x") == "***"


# -- topics ------------------------------------------------------------------------------------------------------


def names(text: str, **environ: str) -> list[str]:
    return [topic.name for topic in topics_of(read(text, **environ))][:-2]


def test_topics_of_patterns_show_the_template() -> None:
    text = beta("quotes: ['X:*', 'Y:A']\nbooks: {20: ['X:*']}")
    assert names(text, K="k") == ["quotes.{symbol}", "quotes.A", "books.beta.{venue}.{symbol}"]
    assert [topic.pattern for topic in topics_of(read(text, K="k"))] == [True, False, True, False, False]


def test_templates_and_merge_let_two_sources_live() -> None:
    two = "providers:\n  alpha: {quotes: [A]}\n  alpha2: {type: alpha, quotes: [A]}\n"
    assert names("merge: true\n" + two) == ["quotes.A", "quotes.A"]
    assert names("topics: {quotes: 'quotes.{provider}.{symbol}'}\n" + two) == ["quotes.alpha.A", "quotes.alpha2.A"]
    venues = beta("quotes: ['X:A', 'Y:A']")
    assert names("topics: {quotes: '{symbol}[.{venue}]'}\n" + venues, K="k") == ["A.X", "A.Y"]


def test_one_source_may_be_subscribed_to_under_two_intervals() -> None:
    assert names(alpha("bars: {1m: [A], 5m: [A]}")) == ["bars.1m.A", "bars.5m.A"]


@pytest.mark.parametrize(
    ("redis", "second", "expected", "own"),
    [
        ("embedded", "simulate: true", ["p.quotes.A", "p.quotes.B"], "p.status.relay"),
        ("redis://localhost", "simulate: true", ["sim.p.quotes.A", "sim.p.quotes.B"], "sim.p.status.relay"),
        ("embedded", "simulate: false", ["sim.p.quotes.A", "p.quotes.B"], "p.status.relay"),
        ("redis://localhost", "simulate: false", ["sim.p.quotes.A", "p.quotes.B"], "p.status.relay"),
    ],
)
def test_simulated_topics_never_stand_under_live_names(redis: str, second: str, expected: list[str], own: str) -> None:
    text = (
        f"redis: {{url: '{redis}', prefix: p.}}\nproviders:\n  alpha: {{simulate: true, quotes: [A]}}\n"
        f"  a2: {{type: alpha, {second}, quotes: [B]}}\n"
    )
    assert names(text) == expected
    assert [t.name for t in topics_of(read(text))][-2] == own


def test_simulated_and_live_source_of_one_symbol_do_not_meet() -> None:
    text = "providers:\n  alpha: {simulate: true, quotes: [A]}\n  a2: {type: alpha, quotes: [A]}\n"
    assert names(text) == ["sim.quotes.A", "quotes.A"]


def test_data_folder_of_the_embedded_server() -> None:
    live = "providers: {alpha: {quotes: [A]}}"
    made_up = "providers: {alpha: {simulate: true, quotes: [A]}}"
    own = "redis: {data_dir: d}\nstate_dir: s\n"
    assert data_dir_of(read("state_dir: s\n" + live)) == os.path.join("s", "redis")
    assert data_dir_of(read("state_dir: s\n" + made_up)) == os.path.join("s", "sim")
    assert (data_dir_of(read(own + live)), data_dir_of(read(own + made_up))) == ("d", os.path.join("d", "sim"))


# -- documentation -----------------------------------------------------------------------------------------------


def _options(struct: type[Any]) -> list[str]:
    return [f.encode_name for f in msgspec.structs.fields(struct)]


@pytest.mark.parametrize(
    "struct",
    [
        Settings,
        RedisConfig,
        OutboxConfig,
        SpoolConfig,
        LogConfig,
        SimulatorConfig,
        *(spec.options for spec in PROVIDERS.values()),
    ],
    ids=lambda s: s.__name__,
)
def test_every_option_is_named_in_the_readme(struct: type[Any]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [name for name in _options(struct) if f"`{name}`" not in readme and f"`{name}:" not in readme]
    assert missing == []


@pytest.mark.parametrize("spec", PROVIDERS.values(), ids=lambda s: s.name)
def test_options_of_every_provider_can_be_read(spec: ProviderSpec) -> None:
    """A type that the reader does not know, or a secret without a name, would show only when somebody gives it."""
    reader = Reader(Problems("x"), {}, read_file)
    for name, item in fields_of(spec.options).items():
        reader.value(item.type, Node("scalar", 1, 1, text="1"), name)
        assert isinstance(name, str)
    assert set(secret_options(spec.options)) <= set(_options(spec.options))
