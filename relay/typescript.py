"""The messages as TypeScript declarations, made from their JSON Schemas; `relay schema` writes them beside those."""

import json
from collections.abc import Mapping
from typing import Any

from relay import schema

_HEAD = """\
// Made by `relay schema`; do not edit. What the relay publishes, as JSON.parse gives it.
// A field that is absent is unknown; there are no nulls. Fields that are not here may come: ignore them.

/** Plain decimal text with the provider's digits: no exponent, trailing zeros kept; Number() would lose some. */
export type Decimal = string;

/**
 * Nanoseconds since 1970-01-01 UTC. They exceed Number.MAX_SAFE_INTEGER: what JSON.parse gives is up to 128 ns off.
 * Exact: BigInt of the digits in the text, see docs/consuming.md.
 */
export type Nanos = number;

/** [price, size]; size "0" removes the level in a delta. */
export type Level = [price: Decimal, size: Decimal];
"""


def text() -> str:
    """Give the whole file."""
    documents = schema.documents()
    parts = [_HEAD]
    parts += [_interface(document) for document in documents.values()]
    parts.append(
        "/** Tell them apart by `type`. */\nexport type Message =\n"
        + "\n".join(f"  | {_name(name)}" for name in documents)
        + ";\n"
    )
    return "\n".join(parts)


def _name(tag: str) -> str:
    return "".join(word.capitalize() for word in tag.split("_"))


def _interface(document: Mapping[str, Any]) -> str:
    lines = [f"/** {document['description'].splitlines()[0]} */", f"export interface {_name(document['title'])} {{"]
    for field, found in document["properties"].items():
        mark = "" if field in document["required"] else "?"
        lines += [f"  /** {found['description'].replace('*/', '* /')} */", f"  {field}{mark}: {_type(found)};"]
    return "\n".join([*lines, "}", ""])


def _type(found: Mapping[str, Any]) -> str:
    if "const" in found:
        return json.dumps(found["const"])
    if "enum" in found:
        return " | ".join(json.dumps(value) for value in found["enum"])
    kind = found.get("type")
    if kind == "string":
        return "Decimal" if "decimal text" in found["description"] else "string"
    if kind == "integer":
        words = found["description"]
        return "Nanos" if "ns since" in words or "ns of" in words or "ns behind" in words else "number"
    return {"boolean": "boolean", "array": "Level[]"}.get(kind or "", "unknown")
