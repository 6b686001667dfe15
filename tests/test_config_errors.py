"""Every wrong relay.yaml gives its exact message and place; all errors come at once, none shows a secret."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import alpha, beta, errors, read, with_alpha

from relay.config.document import DEPTH_MAX, DOCUMENT_BYTES_MAX
from relay.errors import ConfigError

REDIS = "redis:\n  "
CASES: list[tuple[str, str, str]] = [
    # the document
    ("empty", "", " is empty; it needs `providers:` with at least one provider"),
    ("comment", "# nothing\n", " is empty; it needs `providers:` with at least one provider"),
    ("list", "- a\n", "1:1: must be a mapping of options: `providers:` and what goes with it"),
    ("text", "hello", "1:1: must be a mapping of options: `providers:` and what goes with it"),
    ("no providers", "name: a", "1:1: names no provider; put at least one under `providers:`"),
    ("tab", "redis:\n\turl: x", "2:1: a tab; indent with spaces"),
    ("at sign", "name: @a", "1:7: '@' cannot begin a value; put the value in quotes"),
    ("open list", "name: [a", "1:7: a list that begins with [ is not closed; ',' or ']' is missing"),
    ("two colons", "name: a: b", "1:8: a second ': ' in one value; put the value in quotes"),
    ("open quote", "name: 'a", "1:7: a quote is not closed"),
    ("control", "name: a\x01b", "1:8: a control character that YAML does not allow"),
    ("surrogate", "name: \ud800", "1:7: half of a surrogate pair, which no file can hold"),
    ("second document", with_alpha("") + "---\na: 1\n", "2:1: a second document; one file holds one configuration"),
    ("anchor", with_alpha("name: &a x\n"), "1:7: name: an anchor (&a) is not taken; remove it"),
    ("tag", with_alpha("name: !!str x\n"), "1:7: name: a tag (!...) is not taken; every option knows its type"),
    ("python tag", with_alpha("name: !!python/object/apply:os.system [x]\n"),
     "1:7: name: a tag (!...) is not taken; every option knows its type\n"
     "1:7: name: must be a single value, not a list"),
    ("alias", with_alpha("name: *a\n"), "1:7: name: an alias (*a) is not taken; write the value out"),
    ("merge key", with_alpha("redis: {<<: {url: x}}\n"),
     "1:9: redis.<<: a merge key (<<) is not taken; write the options out"),
    ("duplicate", with_alpha("name: a\nname: b\n"), "2:1: name: stands here a second time; the first is on line 1"),
    ("key is a list", with_alpha("[a, b]: c\n"), "1:1: a list or mapping cannot be a key"),
    ("variable in a key", with_alpha("${A}: c\n"), "1:1: ${A}: variables are filled into values, not into keys"),
    ("empty key", with_alpha("redis:\n  ?\n  : c\n"), "2:4: redis: a key is missing before the ':'"),
    # options of the relay
    ("unknown", with_alpha("nam: a\n"), "1:1: nam: is not an option here; did you mean `name`?"),
    ("far from all", with_alpha("xyzzy: a\n"),
     "1:1: xyzzy: is not an option here; known: name, redis, topics, merge, state_dir, memory_mb_max, outbox, "
        "journal, spool, log, http, simulator, standby, "
     "providers"),
    ("nested", with_alpha("redis: {prefx: a}\n"), "1:9: redis.prefx: is not an option here; did you mean `prefix`?"),
    ("misplaced", "alpha: {quotes: [A]}\n", "1:1: alpha: a provider stands under `providers:`, indented"),
    ("no value", with_alpha("name:\n"), "1:6: name: has no value; give it one, or delete the line"),
    ("empty section", with_alpha("redis:\n"),
     "1:7: redis: has no value; put its options below it, indented, or delete the line"),
    ("empty mapping", with_alpha("redis: {}\n"),
     "1:8: redis: is an empty mapping; put something in it, or delete the line"),
    ("section is text", with_alpha("log: debug\n"), "1:6: log: must be a mapping: its options, `name: value`"),
    ("name", with_alpha("name: Relay 1\n"),
     "1:7: name: 'Relay 1' does not fit; expected 1 to 32 characters of [a-z0-9_-]"),
    ("yes", with_alpha("merge: yes\n"), "1:8: merge: must be true or false, not 'yes'"),
    ("True", with_alpha("merge: True\n"), "1:8: merge: must be true or false, not 'True'"),
    ("level", with_alpha("log: {level: warn}\n"),
     "1:14: log.level: 'warn' is none of its values; did you mean `warning`?"),
    ("hex", with_alpha(REDIS + "stream_length_max: 0x10\n"),
     "2:22: redis.stream_length_max: must be a whole number, not '0x10'"),
    ("exponent", with_alpha(REDIS + "stream_length_max: 1e3\n"),
     "2:22: redis.stream_length_max: must be a whole number, not '1e3'"),
    ("fraction", with_alpha(REDIS + "stream_length_max: 1.0\n"),
     "2:22: redis.stream_length_max: must be a whole number, not '1.0'"),
    ("many digits", with_alpha(REDIS + f"stream_length_max: {'9' * 5000}\n"),
     f"2:22: redis.stream_length_max: must be a whole number, not '{'9' * 60}...'"),
    ("below", with_alpha(REDIS + "stream_length_max: 0\n"),
     "2:22: redis.stream_length_max: must be at least 1, not '0'"),
    ("above", with_alpha(REDIS + "port: 70000\n"), "2:9: redis.port: must be at most 65535, not '70000'"),
    ("nan", with_alpha(REDIS + "retention_secs: nan\n"), "2:19: redis.retention_secs: must be a number, not 'nan'"),
    ("outbox", with_alpha("outbox: {bytes_max: 65536}\n"),
     "1:21: outbox.bytes_max: one topic's bound (16777216) is above that of all (65536)"),
    ("state_dir", with_alpha("state_dir: ''\n"), "1:12: state_dir: must name a folder; `.` is the current one"),
    # variables
    ("unset", with_alpha("name: ${NAME}\n"),
     "1:7: name: the variable NAME is not set; export it, or write ${NAME:-default}"),
    ("asked for", with_alpha("name: ${NAME:?say who we are}\n"),
     "1:7: name: the variable NAME is not set: say who we are"),
    ("asked for, empty", with_alpha("name: ${EMPTY:?}\n"),
     "1:7: name: the variable EMPTY is not set: it is needed here"),
    ("set but empty", with_alpha("name: ${EMPTY}\n"),
     "1:7: name: '${EMPTY}' gives an empty text; set the variable"),
    ("not closed", with_alpha("name: ${NAME\n"),
     "1:7: name: a '${' without its '}'; write $${ for a plain ${"),
    ("no variable", with_alpha("name: ${NAME-x}\n"),
     "1:7: name: '${NAME-x}' is no variable; ${VAR}, ${VAR:-default} and ${VAR:?why} are, $${ is a plain ${"),
    ("inside another", with_alpha("name: ${A:-${B}}\n"),
     "1:7: name: '${A:-${B}' is no variable; ${VAR}, ${VAR:-default} and ${VAR:?why} are, $${ is a plain ${"),
    ("value is not shown", with_alpha("merge: ${K}\n"), "1:8: merge: must be true or false, not '${K}'"),
    # redis
    ("no node", with_alpha(REDIS + "url: redis+cluster://a:1,,b\n"),
     "2:8: redis.url: names no host; write redis+cluster://host:6379,host:6379"),
    ("a node's port", with_alpha(REDIS + "url: 'rediss+cluster://u:${K}@a:b,[::1]:7000'\n"),
     "2:8: redis.url: has a host whose port is none; write rediss+cluster://host:6379,host:6379"),
    ("a cluster's database", with_alpha(REDIS + "url: redis+cluster://localhost/1\n"),
     "2:8: redis.url: names a database, and a cluster has only one; write redis+cluster://host:6379,host:6379"),
    ("cluster, TLS without TLS", with_alpha("redis: {url: 'redis+cluster://[::1]:7000/', ca_file: ca.pem}\n"),
     "1:45: redis.ca_file: needs an address that begins with rediss+cluster://"),
    ("no service", with_alpha(REDIS + "url: redis+sentinel://h\n"),
     "2:8: redis.url: names no service; write redis+sentinel://host:26379,host:26379/service, with the name that the "
     "sentinels monitor it by"),
    ("no sentinel", with_alpha(REDIS + "url: rediss+sentinel://a,,b/s\n"),
     "2:8: redis.url: names no host; write rediss+sentinel://host:26379,host:26379/service"),
    ("sentinel's port", with_alpha(REDIS + "url: 'rediss+sentinel://:${K}@a:1,[::1]:99999/s'\n"),
     "2:8: redis.url: has a host whose port is none; write rediss+sentinel://host:26379,host:26379/service"),
    ("sentinel's database", with_alpha(REDIS + "url: rediss+sentinel://a/s/x\n"),
     "2:8: redis.url: must end with the service and, if wanted, the number of the database: "
     "rediss+sentinel://host:26379,host:26379/service/0"),
    ("sentinel, password twice", with_alpha("redis: {url: 'rediss+sentinel://:${K}@a/s', password: '${K}'}\n"),
     "1:45: redis.password: stands in `url` too; give it in one place"),
    ("sentinel, TLS without TLS", with_alpha("redis: {url: 'redis+sentinel://[::1]/s', ca_file: ca.pem}\n"),
     "1:42: redis.ca_file: needs an address that begins with rediss+sentinel://"),
    ("scheme", with_alpha(REDIS + "url: http://u:hunter2@h\n"),
     "2:8: redis.url: must be `embedded`, or begin with redis://, rediss:// (TLS), unix://, redis+cluster:// or redis+sentinel://"),
    ("no host", with_alpha(REDIS + "url: redis:///0\n"), "2:8: redis.url: names no host; write redis://host:6379/0"),
    ("port", with_alpha(REDIS + "url: redis://h:99999\n"), "2:8: redis.url: is no address; write redis://host:6379/0"),
    ("database", with_alpha(REDIS + "url: redis://localhost/x\n"),
     "2:8: redis.url: must end with a port and the number of the database, as in redis://host:6379/0"),
    ("query", with_alpha(REDIS + "url: redis://localhost?x=1\n"),
     "2:8: redis.url: has options behind '?' or '#', which are not taken; the database is the path, as in /0"),
    ("socket", with_alpha(REDIS + "url: unix://sock\n"),
     "2:8: redis.url: needs the absolute path of the socket, as in unix:///run/redis.sock"),
    ("password twice", with_alpha("redis: {url: 'redis://:${K}@localhost', password: '${K}'}\n"),
     "1:41: redis.password: stands in `url` too; give it in one place"),
    ("password and file", with_alpha("redis: {url: 'unix:///s', password: '${K}', password_file: key}\n"),
     "1:45: redis.password_file: `password` is given too; give one of the two"),
    ("TLS without TLS", with_alpha("redis: {url: 'redis://localhost', ca_file: ca.pem}\n"),
     "1:35: redis.ca_file: needs an address that begins with rediss://"),
    ("half a certificate", with_alpha("redis: {url: 'rediss://h', cert_file: c.pem}\n"),
     "1:39: redis.cert_file: goes with `key_file`, which is missing"),
    ("prefix", with_alpha(REDIS + "prefix: a b\n"),
     "2:11: redis.prefix: 'a b' does not fit; expected 0 to 64 characters of [A-Za-z0-9._:-]"),
    # templates
    ("kind", with_alpha("topics: {quote: 'q.{symbol}'}\n"),
     "1:10: topics.quote: is no kind of topic; did you mean `quotes`?"),
    ("placeholder", with_alpha("topics: {quotes: 'q.{symbl}'}\n"),
     "1:18: topics.quotes: {symbl} is unknown for quotes; known are provider, symbol, venue"),
    ("needed", with_alpha("topics: {bars: 'b.{symbol}'}\n"),
     "1:16: topics.bars: {interval} must stand in the template of bars"),
    ("template charset", with_alpha("topics: {quotes: 'q {symbol}'}\n"),
     "1:18: topics.quotes: ' ' cannot stand in a topic name; letters, digits, '.', '_', ':' and '-' can"),
    ("same names", with_alpha("topics: {quotes: 'trades.{symbol}'}\n"),
     "1:18: topics.quotes: gives the same names as the template of trades; put something into it that differs, "
     "as in quotes."),
    ("own keys", with_alpha("topics: {quotes: 'relay:{symbol}'}\n"),
     "1:18: topics.quotes: cannot begin with `relay:`, where the relay keeps its own keys"),
    # providers
    ("providers empty", "providers:\n", "1:1: providers: is empty; put at least one provider below it"),
    ("providers list", "providers: [alpha]\n",
     "1:12: providers: must be a mapping: name of a provider to its options"),
    ("section empty", "providers:\n  alpha:\n",
     "2:3: providers.alpha: is empty; say what it subscribes to, as in quotes: [...]"),
    ("section list", "providers:\n  alpha: [A]\n",
     "2:10: providers.alpha: must be a mapping of options; say what it subscribes to, as in quotes: [...]"),
    ("no such provider", "providers: {alpa: {quotes: [A]}}",
     "1:13: providers.alpa: is no provider; did you mean `alpha`? (a name of your own needs `type:`)"),
    ("no such type", "providers: {x: {type: gamma, quotes: [A]}}",
     "1:23: providers.x.type: 'gamma' is no provider; known: alpha, beta"),
    ("provider name", "providers: {My Feed: {type: alpha, quotes: [A]}}",
     "1:13: providers.My Feed: a provider's name is 1 to 32 characters of [a-z0-9_-]; `type:` says what it is"),
    ("channel", alpha("quotes: [A]\nbooks: {20: [A]}"),
     "4:5: providers.alpha.books: Alpha has no books; it has quotes, trades, bars"),
    ("channel by another name", alpha("quotes: [A]\ncandles: {1m: [A]}"),
     "4:5: providers.alpha.candles: is not an option here; did you mean `bars`?"),
    ("nothing", alpha("topics_max: 5"),
     "2:3: providers.alpha: subscribes to nothing; give it one of quotes, trades, bars"),
    ("one symbol", alpha("quotes: A"), "3:13: providers.alpha.quotes: must be a list, as in [A]"),
    ("no list", alpha("quotes:"), "3:12: providers.alpha.quotes: has no value; give it a list, or delete the line"),
    ("empty list", alpha("quotes: []"),
     "3:13: providers.alpha.quotes: is an empty list; put something in it, or delete the line"),
    ("empty symbol", alpha("quotes: ['']"),
     "3:14: providers.alpha.quotes[0]: is empty; give it a value, or take it out of the list"),
    ("symbol twice", alpha("quotes:\n- A\n- A"),
     "5:7: providers.alpha.quotes[1]: 'A' stands twice; the first is on line 4"),
    ("symbol is a list", alpha("quotes: [[A]]"), "3:14: providers.alpha.quotes[0]: must be a single value, not a list"),
    ("symbol with a blank", alpha("quotes: ['A ']"),
     "3:14: providers.alpha.quotes: 'A ' has a blank at an end or a control character in it"),
    ("long symbol", alpha(f"quotes: [{'A' * 257}]"),
     "3:14: providers.alpha.quotes: a symbol has at most 256 characters"),
    ("pattern", alpha("quotes: [A*]"), "3:14: providers.alpha.quotes: 'A*': Alpha takes no patterns; list the symbols"),
    ("star inside", beta("quotes: ['X*:A']"), "4:14: providers.beta.quotes: 'X*:A': a '*' can stand at the end only"),
    ("bars as a list", alpha("bars: [A]"),
     "3:11: providers.alpha.bars: must be a mapping: by interval: {1m: [EURUSD]}"),
    ("interval", alpha("bars: {1MIN: [A]}"),
     "3:12: providers.alpha.bars.1MIN: is no interval; write a count and s, m, h, d, w or M (month), as in 1m or 4h"),
    ("depth", beta("books: {all: ['X:A']}"),
     "4:13: providers.beta.books.all: is no depth; write a number of levels, as in 20, or `full`"),
    ("two depths", beta("books: {5: ['X:A'], 20: ['X:A']}"),
     "4:30: providers.beta.books.20: 'X:A' has depth 5 already; a symbol has one depth"),
    ("stale_secs", alpha("quotes: [A]\nstale_secs: {quote: 5}"),
     "4:18: providers.alpha.stale_secs.quote: is no channel of Alpha; did you mean `quotes`?"),
    ("negative", alpha("quotes: [A]\nstale_secs: {quotes: -1}"),
     "4:26: providers.alpha.stale_secs.quotes: must be at least 0 (0: never stale)"),
    ("url scheme", alpha("quotes: [A]\nurl: https://h"),
     "4:10: providers.alpha.url: must be the address of a WebSocket: wss://host/path (or ws:// on this machine)"),
    ("url with a password", alpha("quotes: [A]\nurl: wss://u:hunter2@h"),
     "4:10: providers.alpha.url: holds a user or password; give secrets by their own options"),
    ("canonical symbol", alpha("quotes: [A]\nsymbols: {A: eur-usd}"),
     "4:18: providers.alpha.symbols.A: 'eur-usd' is no symbol: 1 to 64 characters of [A-Z0-9._-]; "
     "did you mean EUR-USD?"),
    ("symbols of a pattern", beta("quotes: ['X:*']\nsymbols: {'X:*': A}"),
     "5:15: providers.beta.symbols.X:*: a pattern cannot stand here; name one raw symbol"),
    ("two become one", alpha("quotes: [a, A]"),
     "3:17: providers.alpha.quotes: 'A' and 'a' would both be A; give one another name under `symbols:`"),
    ("mapped onto another", alpha("quotes: [A, B]\nsymbols: {B: A}"),
     "4:18: providers.alpha.symbols.B: 'B' and 'A' would both be A; give one another name under `symbols:`"),
    ("two become one at a venue", beta("quotes: ['X:A/B', 'X:A-B']"),
     "4:23: providers.beta.quotes: 'X:A-B' and 'X:A/B' of X would both be A-B; give one another name under `symbols:`"),
    ("two sources", "providers:\n  alpha: {quotes: [A, B]}\n  alpha2: {type: alpha, quotes: [A, B]}\n",
     "3:34: providers.alpha2.quotes: topic quotes.A (and 1 more) would carry two sources, alpha and alpha2; separate "
     "them by `topics: {quotes: 'quotes.{provider}.{symbol}'}`, or say `merge: true`"),
    ("two venues", beta("quotes: ['X:A', 'Y:A']"),
     "4:21: providers.beta.quotes: topic quotes.A would carry two sources, beta X and beta Y; separate them by "
     "`topics: {quotes: 'quotes.{venue}.{symbol}'}`, or say `merge: true`"),
    ("connections", beta("quotes: ['X:A', 'X:B', 'X:C', 'X:D']"),
     "2:3: providers.beta: needs 4 connections with this key, Beta allows 3; subscribe to less"),
    ("connections of one key",
     "providers:\n  beta: {api_key: '${K}', quotes: ['X:A', 'X:B']}\n"
     "  b2: {type: beta, api_key: '${K}', quotes: ['X:C', 'X:D']}",
     "3:3: providers.b2: and the sections before it need 4 connections with one key, Beta allows 3"),
    ("account", beta("orders: true\naccount: Desk 1"),
     "5:14: providers.beta.account: an account's label is 1 to 32 characters of [a-z0-9_-]"),
    ("one account twice",
     "providers:\n  beta: {api_key: '${K}', orders: true}\n  b2: {type: beta, api_key: x, orders: true}",
     "3:32: providers.b2.orders: topic orders.main would carry two accounts, of beta and b2, both labelled 'main'; "
     "give one of them another label (`account: b2`), or separate them by "
     "`topics: {orders: 'orders.{provider}.{account}'}`"),
    ("bounds", beta("quotes: ['X:A']\nratio: 0"), "5:12: providers.beta.ratio: must be above 0, not '0'"),
    ("long", beta("quotes: ['X:A']\nnote: abcde"), "5:11: providers.beta.note: must have at most 4 characters"),
    ("short", beta("quotes: ['X:A']\nnote: a"), "5:11: providers.beta.note: must have at least 2 characters"),
    ("needs an option", beta("quotes: ['X:A']\nlink: {weight: 2}"), "5:5: providers.beta.link: needs `host`"),
    ("below in a struct", beta("quotes: ['X:A']\nlink: {host: a, weight: 10}"),
     "5:29: providers.beta.link.weight: must be below 10, not '10'"),
    ("value of a mapping", beta("quotes: ['X:A']\ncodes: {a: b}"),
     "5:16: providers.beta.codes.a: must be a whole number, not 'b'"),
    ("provider's own check", beta("quotes: ['X:A']\nlevel: 4"), "5:12: providers.beta.level: 4 was never built"),
    ("provider's own check of all", beta("quotes: ['X:A']\nlevel: 5"), "2:3: providers.beta: level 5 needs a contract"),
    # secrets
    ("no key", "providers: {beta: {quotes: ['X:A']}}",
     "1:13: providers.beta: needs a key from https://beta.example/keys: `api_key: ${BETA_API_KEY}` or `api_key_file`, "
     "or `simulate: true`"),
    ("key unset", "providers: {beta: {api_key: '${NOKEY}', quotes: ['X:A']}}",
     "1:29: providers.beta.api_key: the variable NOKEY is not set; export it, or write ${NOKEY:-default}, or give "
     "`api_key_file`"),
    ("key empty", "providers: {beta: {api_key: '${EMPTY}', quotes: ['X:A']}}",
     "1:29: providers.beta.api_key: '${EMPTY}' gives an empty text; set the variable"),
    ("key twice", "providers: {beta: {api_key: '${K}', api_key_file: key, quotes: ['X:A']}}",
     "1:37: providers.beta.api_key_file: `api_key` is given too; give one of the two"),
    ("key with a line end", "providers: {beta: {api_key: \"hunter2\\n\", quotes: ['X:A']}}",
     "1:29: providers.beta.api_key: has a blank at an end or a line break inside, which no secret has"),
    ("no key file", "providers: {beta: {api_key_file: nope, quotes: ['X:A']}}",
     "1:34: providers.beta.api_key_file: cannot read 'nope': No such file or directory"),
    ("empty key file", "providers: {beta: {api_key_file: empty, quotes: ['X:A']}}",
     "1:34: providers.beta.api_key_file: the file 'empty' is empty"),
    ("two lines", "providers: {beta: {api_key_file: lines, quotes: ['X:A']}}",
     "1:34: providers.beta.api_key_file: the file 'lines' holds more than one line"),
    ("key file not UTF-8", "providers: {beta: {api_key_file: latin1, quotes: ['X:A']}}",
     "1:34: providers.beta.api_key_file: cannot read 'latin1': not UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_wrong_file_says_what_and_where(text: str, expected: str) -> None:
    found = errors(text, K="s3cret-hunter2", EMPTY="")
    assert found == expected.split("\n")
    assert "s3cret" not in str(found) and "hunter2" not in str(found)


def test_all_errors_of_a_file_come_at_once_in_file_order() -> None:
    text = (
        "nam: x\nredis: {port: 0, stream_length_max: x}\nlog: {level: loud}\nproviders:\n"
        "  alpha:\n    quotes: [A, A]\n    books: {20: [A]}\n  gamma: {quotes: [A]}\n  beta: {quotes: []}\nname: X\n"
    )
    places = [line.split(": ")[0] for line in errors(text)]
    assert places == ["1:1", "2:15", "2:37", "3:14", "6:17", "7:5", "8:3", "9:3", "9:18", "10:7"]


def test_alias_bomb_is_refused_at_once() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    found = errors("\n".join(rows))
    assert "1:5: a0: an anchor (&a0) is not taken; remove it" in found
    assert "2:10: a1[0]: an alias (*a0) is not taken; write the value out" in found


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_deep_nesting_is_refused(opening: str) -> None:
    assert errors(opening * 100_000)[-1].endswith(f"nested deeper than {DEPTH_MAX} levels")


def test_large_file_is_refused() -> None:
    text = f" is larger than {DOCUMENT_BYTES_MAX:,} bytes, the most that is read"
    assert errors("#" * (DOCUMENT_BYTES_MAX + 1)) == [text]
    assert errors(b"#" * (DOCUMENT_BYTES_MAX + 1)) == [text]
    assert errors("é" * (DOCUMENT_BYTES_MAX // 2 + 1)) == [text]


def test_bytes_that_are_not_utf8_have_a_place() -> None:
    assert errors(b"name: a\nprefix: \xc3\xa9\xe9\n") == ["2:10: byte 0xe9 is not UTF-8; save the file as UTF-8"]


def test_many_wrong_keys_are_told_in_time() -> None:
    found = errors("".join(f"{'k' * 50}{n}: 1\n" for n in range(15_000)))
    assert len(found) == 15_001


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200) | st.text(alphabet="a:-[]{}?!&*#|>'\"%@`, \n\t$<~", max_size=60))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        read(text)
