"""Nodes to values: each scalar is typed by the field that takes it, from its text; every error has its place.

It reads any msgspec struct by its annotations: nested structs, lists, mappings, literals, optional fields, Meta
constraints. A secret option (`base.Secret`) also takes `<name>_file`, whose stripped content is the value.
"""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import inspect

from relay.config.document import Node, Problems, joined
from relay.config.variables import expand
from relay.secrecy import secret_options

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?")
_GROUPED = re.compile(r"(?<=[0-9])_(?=[0-9])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class _Bad:
    """What a node gives that had an error."""


BAD: Final = _Bad()


@dataclass
class Section:
    """One struct of the file as far as it could be read."""

    cls: Any
    path: str
    node: Node
    values: dict[str, Any] = field(default_factory=dict)
    """The good ones of the options given."""
    others: dict[str, tuple[Node, Node]] = field(default_factory=dict)
    """Key and value of what `extra` named."""


class Reader:
    """Reads the nodes of one file. `literals` lists the secrets that stand in the file as they are."""

    def __init__(self, problems: Problems, environ: Mapping[str, str], read_file: Callable[[str], str]) -> None:
        self.problems, self.environ, self.read_file = problems, environ, read_file
        self.literals: list[tuple[str, Node]] = []
        self._places: dict[str, Node] = {}
        self._item_places: dict[tuple[str, str], Node] = {}
        self._wrong: set[str] = set()

    # -- places --------------------------------------------------------------------------------------------------

    def at(self, *paths: str) -> Node | None:
        """Give the node of the first of these paths that stands in the file."""
        return next((self._places[path] for path in paths if path in self._places), None)

    def at_item(self, path: str, text: str) -> Node | None:
        """Give the node of an item of a list, by its text."""
        return self._item_places.get((path, text))

    def place(self, path: str, key: Node, value: Node) -> None:
        """Note where a key that the caller reads stands."""
        self._places[path], self._places[f"{path}:"] = value, key

    def given(self, path: str) -> bool:
        """Tell whether the file says anything at this path."""
        return path in self._places

    def wrong(self, path: str) -> bool:
        """Tell whether something at this path or below it was refused."""
        return path in self._wrong or any(p.startswith((f"{path}.", f"{path}[")) for p in self._wrong)

    def refuse(self, node: Node | None, path: str, text: str) -> _Bad:
        """Note an error."""
        self._wrong.add(path)
        self.problems.add(node, path, text)
        return BAD

    # -- structs -------------------------------------------------------------------------------------------------

    def section(self, cls: Any, node: Node, path: str, *, extra: Mapping[str, str] | None = None) -> Section:
        """Read a mapping as the options of a struct, without building it. `extra`: further keys the caller reads."""
        out = Section(cls, path, node)
        if not self._is_map(node, path):
            return out
        known, twins, secrets = fields_of(cls), _twins(cls), secret_options(cls)
        for key, value in node.pairs:
            if key.kind != "scalar":
                self._wrong.add(path)
                continue
            name = key.text
            where = joined(path, name)
            self._places[where] = value
            self._places[f"{where}:"] = key
            if extra and name in extra:
                out.others[name] = (key, value)
            elif name in known:
                found = self.value(known[name].type, value, where, secret=name in secrets)
                if found is not BAD:
                    out.values[name] = found
            elif name not in twins:
                self.refuse(key, where, self._unknown(name, [*known, *twins, *(extra or ())]))
        for twin, name in twins.items():
            where = joined(path, twin)
            if where in self._places:
                if joined(path, name) in self._places:
                    self.refuse(self._places[f"{where}:"], where, f"`{name}` is given too; give one of the two")
                    continue
                found = self._from_file(self._places[where], where)
                if found is not BAD:
                    out.values[name] = found
        return out

    def build(self, section: Section) -> Any:
        """Build the struct of what was read; None when an option that it must have is missing or it refuses itself."""
        missing = [
            name for name, item in fields_of(section.cls).items() if item.required and name not in section.values
        ]
        for name in missing:
            twin = f"{name}_file"
            if not self.wrong(joined(section.path, name)) and not self.wrong(joined(section.path, twin)):
                also = f" (or `{twin}`)" if twin in _twins(section.cls) else ""
                self.refuse(
                    self.at(f"{section.path}:", section.path) or section.node, section.path, f"needs `{name}`{also}"
                )
        if missing:
            return None
        try:
            return section.cls(**section.values)
        except ValueError as error:  # from a __post_init__, which may begin with the option it means: `depth: ...`
            name, colon, rest = str(error).partition(": ")
            where = joined(section.path, name)
            if colon and name in fields_of(section.cls):
                node = self.at(where, joined(section.path, f"{name}_file"), f"{section.path}:")
                if not self.wrong(where):
                    self.refuse(node or section.node, where, rest)
            elif not self.wrong(section.path):
                self.refuse(self.at(f"{section.path}:") or section.node, section.path, str(error))
            return None

    # -- values --------------------------------------------------------------------------------------------------

    def value(self, kind: inspect.Type, node: Node, path: str, *, secret: bool = False) -> Any:
        """Read one node as a type; BAD, and a problem, where it is none."""
        self._places.setdefault(path, node)
        if node.kind == "bad":
            self._wrong.add(path)
            return BAD
        described = _described(kind)
        kind = _plain_type(kind)
        if isinstance(kind, inspect.StructType):
            section = self.section(kind.cls, node, path)
            built = self.build(section) if node.kind == "map" else None
            return BAD if built is None else built
        if isinstance(kind, inspect.DictType):
            return self._mapping(kind, node, path, described)
        if isinstance(kind, (inspect.VarTupleType, inspect.ListType)):
            return self._list(kind, node, path)
        text = self.text(node, path, _expected(kind), secret=secret)
        return text if isinstance(text, _Bad) else self._scalar(kind, text, node, path)

    def text(self, node: Node, path: str, expected: str, *, secret: bool = False) -> str | _Bad:
        """Give a scalar's text with its variables filled in."""
        if node.kind == "bad":
            self._wrong.add(path)
            return BAD
        if node.kind != "scalar":
            return self.refuse(node, path, f"must be {expected}, not a {_KINDS[node.kind]}")
        text = node.text
        if node.expands:
            cure = f", or give `{path.rpartition('.')[2]}_file`" if secret else ""
            text, wrong = expand(text, self.environ, cure=cure)
            for why in wrong:
                self.refuse(node, path, why)
            if wrong:
                return BAD
            if not text and (secret or not node.quoted):
                return self.refuse(node, path, f"{node.shown()} gives an empty text; set the variable")
        elif not text and not node.quoted:
            return self.refuse(node, path, "has no value; give it one, or delete the line")
        elif not text and secret:
            return self.refuse(node, path, "is empty; give the secret, best by ${VAR}, or delete the line")
        if secret:
            if text != text.strip() or _CONTROL.search(text):
                return self.refuse(node, path, "has a blank at an end or a line break inside, which no secret has")
            if not node.expands:
                self.literals.append((path, node))
        return text

    def _scalar(self, kind: inspect.Type, text: str, node: Node, path: str) -> Any:
        if isinstance(kind, inspect.StrType):
            if kind.min_length is not None and len(text) < kind.min_length:
                return self.refuse(node, path, f"must have at least {kind.min_length} characters")
            if kind.max_length is not None and len(text) > kind.max_length:
                return self.refuse(node, path, f"must have at most {kind.max_length} characters")
            if kind.pattern is not None and not _pattern(kind.pattern).search(text):
                return self.refuse(node, path, f"{node.shown()} does not fit; expected {_charset(kind.pattern)}")
            return text
        if isinstance(kind, inspect.BoolType):
            if text not in ("true", "false"):
                return self.refuse(node, path, f"must be true or false, not {node.shown()}")
            return text == "true"
        if isinstance(kind, inspect.LiteralType):
            found = {str(value): value for value in kind.values}
            if text not in found:
                near = self.problems.near(text if not node.expands else "", found, what="one of")
                return self.refuse(node, path, f"{node.shown()} is none of its values; {near}")
            return found[text]
        assert isinstance(kind, (inspect.IntType, inspect.FloatType)), f"{path}: no option can have the type {kind}"
        digits = _GROUPED.sub("", text)
        whole = isinstance(kind, inspect.IntType)
        if not (_INTEGER if whole else _DECIMAL).fullmatch(digits):
            return self.refuse(node, path, f"must be {_expected(kind)}, not {node.shown()}")
        number = int(digits) if whole else float(digits)
        bound = _out_of_bounds(kind, number)
        return self.refuse(node, path, f"must be {bound}, not {node.shown()}") if bound else number

    def _list(self, kind: Any, node: Node, path: str) -> Any:
        if node.kind != "list":
            example = f", as in [{node.text}]" if node.kind == "scalar" and node.text and not node.expands else ""
            if node.kind == "scalar" and not node.text:
                return self.refuse(node, path, "has no value; give it a list, or delete the line")
            return self.refuse(node, path, f"must be a list{example}")
        if not node.items:
            return self.refuse(node, path, "is an empty list; put something in it, or delete the line")
        out: list[Any] = []
        seen: dict[Any, Node] = {}
        for at, item in enumerate(node.items):
            where = f"{path}[{at}]"
            found = self.value(kind.item_type, item, where)
            if isinstance(found, str):
                if not found:
                    self.refuse(item, where, "is empty; give it a value, or take it out of the list")
                    continue
                if found in seen:
                    self.refuse(item, where, f"{item.shown()} stands twice; the first is on line {seen[found].line}")
                    continue
                seen[found] = item
                self._item_places[path, found] = item
            if found is not BAD:
                out.append(found)
        return out if isinstance(kind, inspect.ListType) else tuple(out)

    def _mapping(self, kind: inspect.DictType, node: Node, path: str, described: str) -> Any:
        if not self._is_map(node, path, described=described):
            return BAD
        out: dict[Any, Any] = {}
        for key, item in node.pairs:
            if key.kind != "scalar":
                self._wrong.add(path)
                continue
            where = joined(path, key.text)
            self._places[f"{where}:"] = key
            name = self._scalar(_plain_type(kind.key_type), key.text, key, where)
            found = self.value(kind.value_type, item, where)
            if name is not BAD and found is not BAD:
                out[name] = found
        return out

    def _from_file(self, node: Node, path: str) -> str | _Bad:
        name = self.text(node, path, "the name of a file")
        if isinstance(name, _Bad):
            return BAD
        try:
            text = self.read_file(name).strip()
        except UnicodeDecodeError:
            return self.refuse(node, path, f"cannot read {node.shown()}: not UTF-8")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "no such name"
            return self.refuse(node, path, f"cannot read {node.shown()}: {why}")
        if not text:
            return self.refuse(node, path, f"the file {node.shown()} is empty")
        if _CONTROL.search(text):
            return self.refuse(node, path, f"the file {node.shown()} holds more than one line")
        return text

    def _is_map(self, node: Node, path: str, *, described: str = "its options, `name: value`") -> bool:
        if node.kind == "bad":
            self._wrong.add(path)
        elif node.kind == "scalar" and not node.text:
            self.refuse(node, path, "has no value; put its options below it, indented, or delete the line")
        elif node.kind != "map":
            self.refuse(node, path, f"must be a mapping: {described}")
        elif not node.pairs:
            self.refuse(node, path, "is an empty mapping; put something in it, or delete the line")
        else:
            return True
        return False

    def _unknown(self, name: str, known: list[str]) -> str:
        meant = _MEANT.get(name.lower())
        if meant in known:
            return f"is not an option here; did you mean `{meant}`?"
        return f"is not an option here; {self.problems.near(name, known)}"


_KINDS = {"list": "list", "map": "mapping", "scalar": "single value", "bad": "thing"}

_MEANT = {
    "ticker": "quotes", "tickers": "quotes", "candle": "bars", "candles": "bars", "kline": "bars", "klines": "bars",
    "ohlc": "bars", "ohlcv": "bars", "orderbook": "books", "orderbooks": "books", "order_book": "books",
    "level2": "books", "depth": "books", "key": "api_key", "apikey": "api_key",
    "simulated": "simulate", "host": "url", "uri": "url",
}  # fmt: skip
"""What other tools call our options."""


@functools.cache
def fields_of(cls: Any) -> dict[str, Any]:
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    return {item.encode_name: item for item in info.fields}


@functools.cache
def _twins(cls: Any) -> dict[str, str]:
    """The `_file` twin of each secret option to its name; a struct's own option of that name comes first."""
    return {f"{name}_file": name for name in secret_options(cls) if f"{name}_file" not in fields_of(cls)}


@functools.cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def _plain_type(kind: inspect.Type) -> inspect.Type:
    """Strip metadata and `None` (absent is absent: nothing in a file stands for it)."""
    while True:
        if isinstance(kind, inspect.Metadata):
            kind = kind.type
        elif isinstance(kind, inspect.UnionType):
            (kind,) = [item for item in kind.types if not isinstance(item, inspect.NoneType)]  # one type each
        else:
            return kind


def _expected(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.IntType):
        return "a whole number"
    if isinstance(kind, inspect.FloatType):
        return "a number"
    return "true or false" if isinstance(kind, inspect.BoolType) else "a single value"


def _described(kind: inspect.Type) -> str:
    """Give an option's description where it can follow `must be a mapping:`."""
    text = (kind.extra_json_schema or {}).get("description", "") if isinstance(kind, inspect.Metadata) else ""
    return text[:1].lower() + text[1:].rstrip(".") if text else "`key: value`"


def _charset(pattern: str) -> str:
    """Say a pattern in words where it is one class of characters and a length: `^[a-z]{1,32}$`."""
    found = re.fullmatch(r"\^(\[.+\])\{(\d+),(\d+)\}\$", pattern)
    return f"{found[2]} to {found[3]} characters of {found[1]}" if found else f"what matches {pattern}"


def _out_of_bounds(kind: Any, number: float) -> str:
    """Say which bound a number breaks; empty: none."""
    if kind.ge is not None and number < kind.ge:
        return f"at least {kind.ge}"
    if kind.gt is not None and number <= kind.gt:
        return f"above {kind.gt}"
    if kind.le is not None and number > kind.le:
        return f"at most {kind.le}"
    if kind.lt is not None and number >= kind.lt:
        return f"below {kind.lt}"
    return ""
