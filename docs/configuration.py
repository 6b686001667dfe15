"""Write the configuration reference of README.md from the option structs: `python docs/configuration.py`.

The tables stand between two markers; tests/test_readme.py fails when they are not what this gives.
"""

import sys
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from relay.config import Settings
from relay.config.values import fields_of
from relay.providers import PROVIDERS
from relay.providers.base import Options
from relay.secrecy import secret_options

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- begin of the generated reference -->", "<!-- end of the generated reference -->"
MEANINGS = {
    "quotes": "Raw symbols whose best bid and ask to take.",
    "trades": "Raw symbols whose trades to take.",
    "rates": "Raw symbols whose reference rates to take.",
    "greeks": "Raw symbols of options whose greeks to take.",
    "instruments": "Raw symbols whose descriptions to take.",
}
_KINDS: dict[type, str] = {
    inspect.StrType: "text",
    inspect.IntType: "whole number",
    inspect.FloatType: "number",
    inspect.BoolType: "true/false",
    inspect.VarTupleType: "list",
    inspect.DictType: "mapping",
    inspect.StructType: "section",
}


def bare(kind: inspect.Type) -> inspect.Type:
    """A type without its description and without `None`."""
    if isinstance(kind, inspect.Metadata):
        return bare(kind.type)
    if isinstance(kind, inspect.UnionType):
        return bare(next(t for t in kind.types if not isinstance(t, inspect.NoneType)))
    return kind


def takes(kind: inspect.Type) -> str:
    kind = bare(kind)
    if isinstance(kind, inspect.LiteralType):
        return " ".join(f"`{value}`" for value in kind.values)
    return _KINDS[type(kind)]


def default(field: inspect.Field) -> str:
    if field.required:
        return "needed"
    value: Any = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if value in ("", (), {}, None) or isinstance(value, msgspec.Struct):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and value >= 1024 * 1024 and value % (1024 * 1024) == 0:
        return f"`{value}` ({value // (1024 * 1024)} MiB)"
    return f"`{value}`"


def meaning(name: str, field: inspect.Field) -> str:
    kinds = [field.type, *(field.type.types if isinstance(field.type, inspect.UnionType) else ())]
    for kind in kinds:
        if isinstance(kind, inspect.Metadata):
            text = (kind.extra_json_schema or {}).get("description", "")
            if text:
                parts = text.replace("|", "\\|").split("`")
                return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))
    return MEANINGS.get(name, "")


def table(struct: type[Any], leave: frozenset[str] = frozenset()) -> list[str]:
    rows = ["| option | takes | default | |", "|---|---|---|---|"]
    secrets = secret_options(struct)
    for name, field in fields_of(struct).items():
        if name in leave:
            continue
        kind, text = takes(field.type), meaning(name, field)
        if kind == "section":
            text = f"See `{name}` below."
        if name in secrets:
            kind, text = "secret", f"{'' if 'twin' in text else text} Or `{name}_file`.".strip()
        rows.append(f"| `{name}` | {kind} | {default(field)} | {text} |")
    return rows


def reference() -> str:
    """The generated part of the README."""
    out = ["### The relay", "", *table(Settings), ""]
    out += [
        "`providers` is the mapping of provider sections, our name for each to its options; at least one is needed."
    ]
    for name, field in fields_of(Settings).items():
        kind = bare(field.type)
        if isinstance(kind, inspect.StructType):
            out += ["", f"### `{name}`", "", " ".join((kind.cls.__doc__ or "").split()), "", *table(kind.cls)]
    out += ["", "### Every provider", "", *table(Options)]
    common = frozenset(fields_of(Options))
    for spec in PROVIDERS.values():
        channels = ", ".join(f"`{channel}`" for channel in spec.channels)
        out += ["", f"### Options of `{spec.name}`", "", f"Channels: {channels}.", ""]
        out += table(spec.options, common) if set(fields_of(spec.options)) - common else ["No options of its own."]
    return "\n".join(out)


def current(text: str) -> str:
    """README.md with the reference as it should be."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{reference()}\n\n{END}{tail}"


if __name__ == "__main__":
    wanted = current(README.read_text(encoding="utf-8"))
    if "--check" in sys.argv:
        sys.exit(0 if wanted == README.read_text(encoding="utf-8") else "README.md: the reference is out of date")
    README.write_text(wanted, encoding="utf-8")
