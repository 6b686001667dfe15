"""The messages as JSON Schema, one document a kind, made from the structs and their descriptions.

It says what stands on the wire: an unknown field is absent and never null, and what the relay stamps on every
message is required although the structs have defaults for it. Unknown fields are allowed: they may come later.
"""

import json
from collections.abc import Mapping
from typing import Any, get_type_hints

import msgspec
from msgspec import Meta

from relay import model
from relay.model import MESSAGES, Header

DIALECT = "https://json-schema.org/draft/2020-12/schema"
STAMPED = ("provider", "ts_recv", "run", "seq")
"""What every published message has."""
_MARKET = (
    model.Quote, model.Trade, model.Bar, model.BookSnapshot, model.BookDelta, model.Rate, model.Greeks,
    model.Instrument,
)  # fmt: skip
_SYMBOLS = ("symbol", "raw_symbol")
"""What every message has that is not about a status or an account."""
_ONE_OF: Mapping[type[Header], tuple[str, ...]] = {model.Quote: ("bid", "ask", "mid")}
"""Fields of which at least one is there."""


def documents() -> dict[str, dict[str, Any]]:
    """Give one schema a message, by the message's `type`, in the order of the model."""
    return {_tag(cls): _document(cls) for cls in MESSAGES}


def text(document: Mapping[str, Any]) -> str:
    """Write one schema as it stands in its file."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _tag(cls: type[Header]) -> str:
    return str(cls.__struct_config__.tag)


def _document(cls: type[Header]) -> dict[str, Any]:
    (_, made) = msgspec.json.schema_components([cls])
    source = made[cls.__name__]
    described = _descriptions(cls)
    properties: dict[str, Any] = {
        "type": {"description": "Kind of the message.", "const": _tag(cls)},
    }
    for name, value in source["properties"].items():
        if name != "type":
            plain = _plain(value)
            plain["description"] = described.get(name, "")
            properties[name] = {"description": "", **plain}
    must = {"type", *STAMPED, *source["required"], *(_SYMBOLS if cls in _MARKET else ())}
    for name in must:
        properties[name].pop("default", None)
    document = {
        "$schema": DIALECT,
        "title": _tag(cls),
        "description": source["description"],
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name in must],
    }
    if cls in _ONE_OF:
        document["anyOf"] = [{"required": [name]} for name in _ONE_OF[cls]]
    return document


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """One property without the null that is never written."""
    kinds = value.get("anyOf")
    if kinds is None:
        return dict(value)
    (kind,) = (one for one in kinds if one.get("type") != "null")
    return dict(kind)


def _descriptions(cls: type[Header]) -> dict[str, str]:
    """Each field's own description, then that of its type (meaning, then unit)."""
    return {
        name: " ".join(dict.fromkeys(reversed(_texts(hint))))
        for name, hint in get_type_hints(cls, include_extras=True).items()
    }


def _texts(hint: Any) -> list[str]:
    """Descriptions of one annotation, the innermost type's first."""
    metas = getattr(hint, "__metadata__", None)
    if metas is None:
        # a union with None: what stands beside the None
        return [found for one in getattr(hint, "__args__", ()) for found in _texts(one) if hasattr(one, "__metadata__")]
    return [meta.description for meta in metas if isinstance(meta, Meta) and meta.description]
