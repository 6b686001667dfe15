"""The AsyncAPI document is valid by the official schema, says what the relay does, and resolves; so do the types."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import redis
from click.testing import CliRunner
from jsonschema import Draft7Validator
from relays import config_of, relay_of, until

from relay import asyncapi, model, schema, typescript
from relay.cli.schema import command
from relay.config.structs import RedisConfig
from relay.topics import DEFAULT_TEMPLATES, Topics

ROOT = Path(__file__).resolve().parents[1]
OFFICIAL = Path(__file__).parent / "data" / "asyncapi-3.0.0.json"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return asyncapi.document()


def resolve(document: dict[str, Any], ref: str) -> Any:
    found: Any = document
    for part in ref.removeprefix("#/").split("/"):
        found = found[part]
    return found


def test_document_is_valid_by_the_official_schema(document: dict[str, Any]) -> None:
    official = Draft7Validator(json.loads(OFFICIAL.read_text(encoding="utf-8")))
    official.validate(document)
    broken = {**document, "channels": {"quotes": {"adress": "quotes"}}}
    assert not official.is_valid(broken), "or the check would prove nothing"


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                found.append(resolve(document, value["$ref"]))
            for one in value.values():
                walk(one)
        elif isinstance(value, list):
            for one in value:
                walk(one)

    walk(document)
    assert len(found) > 50 and all(found)


def test_every_kind_of_topic_is_there_under_its_default_name(document: dict[str, Any]) -> None:
    topics = Topics("desk")
    words = {"provider": "acme", "symbol": "EUR-USD", "interval": "1m", "account": "main"}
    for kind in DEFAULT_TEMPLATES:
        for name, venue in ((kind, None), (f"{kind}_by_venue", "X")):
            if name in document["channels"]:
                channel = document["channels"][name]
                address = channel["address"].format(**words, venue=venue, relay="desk")
                assert address == topics.name(kind, **words, venue=venue), name
                assert channel["x-stream"]["key"] == channel["x-stream"]["pubsub-channel"] == channel["address"]
                assert set(channel["parameters"]) == {
                    word for word in asyncapi._WORDS if f"{{{word}}}" in channel["address"]
                }
    assert {name.removesuffix("_by_venue") for name in document["channels"]} == set(DEFAULT_TEMPLATES)


def test_every_message_stands_in_a_topic(document: dict[str, Any]) -> None:
    carried = {name for channel in document["channels"].values() for name in channel["messages"]}
    assert carried == set(document["components"]["messages"]) == set(schema.documents())
    for cls, kind in model.CHANNEL_OF.items():
        assert str(cls.__struct_config__.tag) in document["channels"][kind]["messages"]


def test_stream_length_is_the_default_of_the_config(document: dict[str, Any]) -> None:
    assert document["channels"]["quotes"]["x-stream"]["length"] == RedisConfig().stream_length_max


@pytest.mark.parametrize("name", schema.documents())
def test_examples_are_valid_and_payloads_say_the_same_as_the_schemas(document: dict[str, Any], name: str) -> None:
    payload = resolve(document, document["components"]["messages"][name]["payload"]["$ref"])
    Draft7Validator.check_schema(payload)
    (example,) = document["components"]["messages"][name]["examples"]
    for validator in (Draft7Validator(payload), jsonschema.Draft202012Validator(schema.documents()[name])):
        validator.validate(example["payload"])
        assert not validator.is_valid({**example["payload"], "seq": "1"})
        if "bids" in example["payload"]:
            assert not validator.is_valid({**example["payload"], "bids": [["1"]]})
            assert not validator.is_valid({**example["payload"], "bids": [["1", "2", "3"]]})


async def test_whole_relay_publishes_what_the_document_says(
    document: dict[str, Any], redis_url: str, tmp_path: Path
) -> None:
    """A consumer that knows the document alone: every topic, field, id, number and message of all providers."""
    shipped = (ROOT / "relay.yaml").read_text(encoding="utf-8")
    text = f"redis: {{url: {redis_url}}}\n" + shipped[shipped.index("\nproviders:") :]
    prefix = document["x-relay"]["prefix-simulated"]
    topics_key = prefix + document["x-relay"]["topics-key"]
    async with relay_of(config_of(text, tmp_path)):
        wanted = {"quotes", "trades", "bars", "books", "status"}
        with redis.Redis.from_url(redis_url) as client:
            kinds: set[str] = set()

            def seen() -> bool:
                listed = client.hgetall(topics_key)
                kinds.update(json.loads(value)["kind"] for value in listed.values())
                return kinds >= wanted and all(client.xlen(name) > 5 for name in listed if b"quotes." in name)

            await until(seen, 30)
    channels = {
        name: re.compile(
            re.escape(prefix) + re.sub(r"\\{[a-z]+\\}", "[A-Za-z0-9._-]+", re.escape(channel["address"])) + "$"
        )
        for name, channel in document["channels"].items()
    }
    validators = {name: Draft7Validator(found) for name, found in document["components"]["schemas"].items()}
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        for topic, value in client.hgetall(topics_key).items():
            assert set(json.loads(value)) == set(document["x-relay"]["topics-value"])
            names = [name for name, pattern in channels.items() if pattern.match(topic)]
            assert json.loads(value)["kind"] in {name.removesuffix("_by_venue") for name in names}, topic
            expected = 0
            for entry_id, fields in client.xrange(topic):
                channel = document["channels"][names[-1]]
                assert list(fields) == [channel["x-stream"]["field"]]
                message = json.loads(fields["data"])
                assert message["type"] in channel["messages"], topic
                validators[message["type"]].validate(message)
                expected += 1
                assert message["seq"] == expected and entry_id == f"{message['ts_recv'] // 1_000_000}-{message['seq']}"
                assert message.get("origin") == "simulated" or message["type"] == "status"


def test_command_prints_it(document: dict[str, Any]) -> None:
    printed = CliRunner().invoke(command, ["--asyncapi"])
    assert json.loads(printed.output) == document
    assert CliRunner().invoke(command, ["--asyncapi", "--json"]).exit_code == 2


def test_types_have_every_field() -> None:
    text = typescript.text()
    for name, found in schema.documents().items():
        title = "".join(word.capitalize() for word in name.split("_"))
        body = text[text.index(f"export interface {title} {{") :]
        body = body[: body.index("\n}\n")]
        fields = [line.strip() for line in body.splitlines()[1:] if not line.strip().startswith("/**")]
        assert [line.split(":")[0].rstrip("?") for line in fields] == list(found["properties"])
        assert [line.split(":")[0] for line in fields if not line.split(":")[0].endswith("?")] == found["required"]
    for line in (
        "bid?: Decimal;",
        "ts_recv: Nanos;",
        "start: Nanos;",
        "seq: number;",
        "bids: Level[];",
        'type: "trade";',
    ):
        assert f"  {line}\n" in text
    assert text.count(": unknown;") == 1, "only an account's own JSON has no type"


def test_types_compile(tmp_path: Path) -> None:
    """Where TypeScript is at hand (`npm install typescript` into a folder on the PATH)."""
    tsc = shutil.which("tsc")
    if tsc is None:
        pytest.skip("no tsc on the PATH: the types are compared as text only")
    (tmp_path / "relay.d.ts").write_text(typescript.text())
    (tmp_path / "use.ts").write_text(
        'import type { Message } from "./relay";\n'
        "export function price(one: Message): string | undefined {\n"
        '  switch (one.type) { case "quote": return one.bid; case "trade": return one.price;\n'
        '    case "book_delta": return one.bids[0]?.[0]; default: return undefined; }\n}\n'
    )
    done = subprocess.run([tsc, "--strict", "--noEmit", "use.ts"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
