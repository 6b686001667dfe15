"""The whole way from the text of relay.yaml to a `Config`, with every problem of the file at once."""

from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl, urlsplit

import msgspec

from relay.config.addresses import passwords_in
from relay.config.document import Node, Problems, decode, parse
from relay.config.redis_target import check_redis
from relay.config.sections import SIMULATED_KEY, as_config, check_together, read_provider
from relay.config.structs import EMBEDDED, Config, ProviderConfig, Settings
from relay.config.values import Reader
from relay.providers.base import ProviderSpec
from relay.secrecy import secret_maps, secret_options
from relay.topics import DEFAULT_TEMPLATES, PLACEHOLDERS, compile_template

PROVIDERS_MAX = 256

_TOP = {"providers": "the providers"}


QUERY_SECRET_CHARS_MIN = 8
"""A query value of an address may be a ticket; a shorter one (`v=2`) is none and looks like ordinary text."""


def load(
    text: str | bytes,
    file: str,
    *,
    environ: Mapping[str, str],
    read_file: Callable[[str], str],
    providers: Mapping[str, ProviderSpec],
) -> Config:
    """Read a configuration. `file` names it in errors; `read_file` gives the content of the files it names.

    Raises: ConfigError with all problems, in file order. Values of variables and secrets never stand in one.
    """
    problems = Problems(file)
    if isinstance(text, bytes):
        text = decode(text, problems)
    reader = Reader(problems, environ, read_file)
    root = parse(text, problems)
    if root is None or (root.kind == "scalar" and not root.text):
        raise problems.stop(0, 0, "is empty; it needs `providers:` with at least one provider")
    if root.kind == "bad":
        raise problems.error()
    if root.kind != "map":
        raise problems.stop(root.line, root.column, "must be a mapping of options: `providers:` and what goes with it")
    _hint_misplaced(root, providers, reader)
    section = reader.section(Settings, root, "", extra=_TOP)
    settings = reader.build(section) or Settings()
    assert isinstance(settings, Settings)
    check_redis(settings.redis, reader)
    _check_settings(settings, reader)
    sections = _providers(section.others.get("providers"), root, providers, reader)
    config = as_config(settings, sections)
    for name in settings.standby.cold:
        if name not in sections and not reader.wrong("providers"):
            text = f"{name!r} is no provider of this file; {problems.near(name, sections)}"
            reader.refuse(reader.at_item("standby.cold", name) or reader.at("standby.cold"), "standby.cold", text)
    if not reader.wrong("topics") and not reader.wrong("name"):
        check_together(config, reader)
    if problems.any:
        raise problems.error()
    return msgspec.structs.replace(config, warnings=problems.warnings)


def _hint_misplaced(root: Node, specs: Mapping[str, ProviderSpec], reader: Reader) -> None:
    """Say of a provider at the top level where it belongs, instead of `is not an option here`."""
    for key, _ in root.pairs:
        if key.kind == "scalar" and key.text in specs:
            reader.refuse(key, key.text, "a provider stands under `providers:`, indented")
            key.kind = "bad"


def _check_settings(settings: Settings, reader: Reader) -> None:
    if not settings.state_dir:
        reader.refuse(reader.at("state_dir"), "state_dir", "must name a folder; `.` is the current one")
    outbox = settings.outbox
    if outbox.topic_bytes_max > outbox.bytes_max and not reader.wrong("outbox"):
        path = "outbox.topic_bytes_max" if reader.given("outbox.topic_bytes_max") else "outbox.bytes_max"
        text = f"one topic's bound ({outbox.topic_bytes_max}) is above that of all ({outbox.bytes_max})"
        reader.refuse(reader.at(path), path, text)
    for node_path, node in reader.literals:
        if node_path.startswith("redis."):
            reader.problems.warn(
                node, node_path, "stands in the file as it is; put it in the environment: ${REDIS_PASSWORD}"
            )
    _check_templates(settings.topics, reader)
    _check_standby(settings, reader)


def _check_standby(settings: Settings, reader: Reader) -> None:
    standby = settings.standby
    if not standby.enabled or reader.wrong("standby"):
        return
    if settings.redis.url == EMBEDDED:
        text = "standing by needs a Redis that all nodes reach; name it in redis.url"
        reader.refuse(reader.at("standby.enabled"), "standby.enabled", text)
    least = 2 * standby.cover_secs
    if standby.ring_secs < least:
        path = "standby.ring_secs" if reader.given("standby.ring_secs") else "standby.lease_secs"
        text = f"a lease of {standby.lease_secs:g} s needs ring_secs of {least:g} or more"
        reader.refuse(reader.at(path), path, text)


def _check_templates(templates: Mapping[str, str], reader: Reader) -> None:
    shapes: dict[str, str] = {}
    for kind, template in {**DEFAULT_TEMPLATES, **templates}.items():
        path = f"topics.{kind}"
        node = reader.at(path)
        if kind not in DEFAULT_TEMPLATES:
            near = reader.problems.near(kind, DEFAULT_TEMPLATES)
            reader.refuse(reader.at(f"{path}:"), path, f"is no kind of topic; {near}")
            continue
        try:
            fill = compile_template(kind, template)
        except ValueError as error:
            reader.refuse(node, path, str(error))
            continue
        shape = fill(**{name: f"<{name}>" for name in PLACEHOLDERS[kind] - {"symbol", "venue"}}, symbol="S", venue="V")
        if not shape:
            reader.refuse(node, path, "is empty; every topic needs a name")
        elif shape.startswith("relay:"):
            reader.refuse(node, path, "cannot begin with `relay:`, where the relay keeps its own keys")
        elif shape in shapes:
            other = shapes[shape]
            first, second = (kind, other) if kind in templates else (other, kind)
            text = (
                f"gives the same names as the template of {second}; put something into it that differs, as in {first}."
            )
            reader.refuse(reader.at(f"topics.{first}"), f"topics.{first}", text)
        else:
            shapes[shape] = kind


def _providers(
    given: tuple[Node, Node] | None, root: Node, specs: Mapping[str, ProviderSpec], reader: Reader
) -> dict[str, ProviderConfig]:
    out: dict[str, ProviderConfig] = {}
    if given is None:
        if not reader.wrong(""):
            reader.refuse(root, "", "names no provider; put at least one under `providers:`")
        return out
    key, node = given
    if node.kind == "bad":
        return out
    if node.kind != "map" or not node.pairs:
        empty = node.kind == "map" or (node.kind == "scalar" and not node.text)
        text = (
            "is empty; put at least one provider below it"
            if empty
            else "must be a mapping: name of a provider to its options"
        )
        reader.refuse(key if empty else node, "providers", text)
        return out
    if len(node.pairs) > PROVIDERS_MAX:
        reader.refuse(key, "providers", f"has more than {PROVIDERS_MAX} sections")
        return out
    for name, section in node.pairs:
        if name.kind != "scalar":
            continue
        reader.place(f"providers.{name.text}", name, section)
        found = read_provider(name.text, name, section, specs, reader)
        if found is not None:
            out[name.text] = found
    return out


def secrets_of(config: Config) -> list[str]:
    """List every secret in a configuration, for redaction. The stand-in of simulated providers is none."""
    found = [*_secrets(config.redis), *passwords_in(config.redis.url)]
    for provider in config.providers.values():
        found += [s for s in _secrets(provider.options) if not (provider.options.simulate and s == SIMULATED_KEY)]
    return list(dict.fromkeys(found))


def _secrets(value: object) -> list[str]:
    out: list[str] = []
    if isinstance(value, msgspec.Struct):
        names, maps = secret_options(type(value)), secret_maps(type(value))
        for name in value.__struct_fields__:
            item = getattr(value, name)
            if name in maps:
                out += [text for text in item.values() if text]
            elif name.endswith("url") and isinstance(item, str) and "?" in item:
                out += [text for _, text in parse_qsl(urlsplit(item).query) if len(text) >= QUERY_SECRET_CHARS_MIN]
            else:
                out += ([item] if item else []) if name in names else _secrets(item)
    elif isinstance(value, (list, tuple)):
        out += [secret for item in value for secret in _secrets(item)]
    elif isinstance(value, dict):
        out += [secret for item in value.values() for secret in _secrets(item)]
    return out
