"""YAML text to a tree of nodes with their places, strictly: what can surprise is refused, all of it at once.

It reads libyaml's events, so neither an alias bomb nor deep nesting costs anything, and no scalar is typed here: the
text stays as it was written. Aliases, anchors, tags, merge keys, duplicate keys and second documents are refused.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from relay.errors import ConfigError, Problem

DOCUMENT_BYTES_MAX = 1024 * 1024
"""A config with 10,000 symbols takes some 150 kB."""
_TOO_LARGE = f"is larger than {DOCUMENT_BYTES_MAX:,} bytes, the most that is read"
DEPTH_MAX = 32
"""The deepest option lies at 5."""
SHOWN_CHARS_MAX = 60
_NEAR_CHARS_MAX = 64
_NEAR_PROBLEMS_MAX = 100  # difflib is slow, and nobody reads the hints of the hundred-and-first error

_CSafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_PLAINER = {
    "mapping values are not allowed in this context": "a second ': ' in one value; put the value in quotes",
    "did not find expected ',' or ']'": "a list that begins with [ is not closed; ',' or ']' is missing",
    "did not find expected ',' or '}'": "a mapping that begins with { is not closed; ',' or '}' is missing",
    "did not find expected '-' indicator": "this line does not belong to the list above it; look at the indentation",
    "did not find expected key": "this line does not belong to the mapping above it; look at the indentation",
    "could not find expected ':'": "a key without its ':'",
    "found unexpected end of stream": "a quote is not closed",
}
"""libyaml's words for the usual slips, in ours."""
_OPENED = ("did not find expected ',' or ']'", "did not find expected ',' or '}'", "found unexpected end of stream")
"""Slips whose cure lies where something was opened, not where the parser gave up."""


@dataclass(slots=True)
class Node:
    """One scalar, list or mapping of the file. `bad`: refused already, nothing more is said about it."""

    kind: Literal["scalar", "list", "map", "bad"]
    line: int
    column: int
    text: str = ""
    """Of a scalar, as written, before variables."""
    quoted: bool = False
    items: list["Node"] = field(default_factory=list)
    pairs: list[tuple["Node", "Node"]] = field(default_factory=list)
    """Of a mapping: key (a scalar, each text once; or bad) and value, in file order."""

    @property
    def expands(self) -> bool:
        """Whether variables stand in it."""
        return "${" in self.text

    def shown(self) -> str:
        """The scalar as the file has it (never a variable's value), for an error's text."""
        text = self.text if len(self.text) <= SHOWN_CHARS_MAX else self.text[:SHOWN_CHARS_MAX] + "..."
        return repr(text)


class Problems:
    """Everything that is wrong (or worth a warning) in one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._errors: list[Problem] = []
        self._warnings: list[Problem] = []

    def add(self, node: Node | None, path: str, text: str) -> None:
        """Note an error at a node, or about the whole file."""
        self._errors.append(self._problem(node, path, text))

    def warn(self, node: Node | None, path: str, text: str) -> None:
        """Note what works and should still be looked at."""
        self._warnings.append(self._problem(node, path, text))

    def stop(self, line: int, column: int, text: str) -> ConfigError:
        """Give the exception of an error behind which the file cannot be read on."""
        self._errors.append(Problem(self.file, line, column, "", text))
        return self.error()

    def error(self) -> ConfigError:
        """Give all errors as one exception, in file order."""
        return ConfigError(_in_order(self._errors))

    @property
    def any(self) -> bool:
        """Whether there is an error."""
        return bool(self._errors)

    @property
    def warnings(self) -> list[Problem]:
        """All warnings, in file order."""
        return _in_order(self._warnings)

    def near(self, given: str, known: Iterable[str], *, what: str = "known") -> str:
        """Text that names the nearest known name, or all of them: `did you mean `quotes`?`."""
        names = list(known)
        if len(given) <= _NEAR_CHARS_MAX and len(self._errors) < _NEAR_PROBLEMS_MAX:
            found = difflib.get_close_matches(given.lower(), names, 1)
            if found:
                return f"did you mean `{found[0]}`?"
        return f"{what}: {', '.join(names) or 'none'}"

    def _problem(self, node: Node | None, path: str, text: str) -> Problem:
        return Problem(self.file, node.line if node else 0, node.column if node else 0, path, text)


def _in_order(problems: list[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda p: (p.line, p.column))


def joined(path: str, key: str) -> str:
    """Path of a key inside a mapping."""
    key = key if len(key) <= SHOWN_CHARS_MAX else key[:SHOWN_CHARS_MAX] + "..."
    return f"{path}.{key}" if path else key


def decode(data: bytes, problems: Problems) -> str:
    """Decode a file's bytes. Raises: ConfigError with the place of the first byte that is not UTF-8."""
    if len(data) > DOCUMENT_BYTES_MAX:
        raise problems.stop(0, 0, _TOO_LARGE)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        good = data[: error.start].decode()
        line, column = _line_column(good, len(good))
        byte = data[error.start]
        raise problems.stop(line, column, f"byte 0x{byte:02x} is not UTF-8; save the file as UTF-8") from None


def parse(text: str, problems: Problems) -> Node | None:
    """Read one YAML document; None for an empty one. What is refused becomes a problem.

    Raises: ConfigError where the text is no YAML, too large or too deep.
    """
    if len(text) > DOCUMENT_BYTES_MAX or len(text.encode("utf-8", "surrogatepass")) > DOCUMENT_BYTES_MAX:
        raise problems.stop(0, 0, _TOO_LARGE)
    text = text.removeprefix("\ufeff")
    try:
        return _tree(text, problems)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if error.problem in _OPENED:
            mark = error.context_mark or mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        raise problems.stop(line + 1, column + 1, _plain(error, text, line, column)) from None
    except yaml.reader.ReaderError as error:
        line, column = _place(text, error)
        raise problems.stop(line, column, "a control character that YAML does not allow") from None
    except UnicodeEncodeError as error:
        line, column = _line_column(text, error.start)
        raise problems.stop(line, column, "half of a surrogate pair, which no file can hold") from None


def _tree(text: str, problems: Problems) -> Node | None:
    root: Node | None = None
    open_nodes: list[Node] = []  # the lists and mappings around the event
    keys: list[Node | None] = []  # of each mapping in it: the key that waits for its value
    seen: list[dict[str, int]] = []
    paths: list[str] = []
    documents = 0
    for event in yaml.parse(text, Loader=_CSafeLoader):
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise problems.stop(*_of(event), "a second document; one file holds one configuration")
            continue
        if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            open_nodes.pop(), keys.pop(), seen.pop(), paths.pop()
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        node = _node(event)
        parent = open_nodes[-1] if open_nodes else None
        path = paths[-1] if paths else ""
        if parent is None:
            root = node
        elif parent.kind == "list":
            path = f"{path}[{len(parent.items)}]"
            parent.items.append(node)
        elif keys[-1] is None:
            keys[-1] = node
            _check_key(node, path, seen[-1], problems)
            _check_event(event, node, joined(path, node.text), problems)
            if node.kind in ("list", "map"):  # a key that is a tree: read on, it hangs nowhere
                _open(node, path, open_nodes, keys, seen, paths, problems)
            continue
        else:
            key = keys[-1]
            keys[-1] = None
            path = joined(path, key.text)
            parent.pairs.append((key, node))
        _check_event(event, node, path, problems)
        if isinstance(event, yaml.CollectionStartEvent):
            _open(node, path, open_nodes, keys, seen, paths, problems)
    return root


def _open(
    node: Node,
    path: str,
    open_nodes: list[Node],
    keys: list[Node | None],
    seen: list[dict[str, int]],
    paths: list[str],
    problems: Problems,
) -> None:
    if len(open_nodes) == DEPTH_MAX:
        raise problems.stop(node.line, node.column, f"nested deeper than {DEPTH_MAX} levels")
    open_nodes.append(node)
    keys.append(None)
    seen.append({})
    paths.append(path)


def _node(event: Any) -> Node:
    line, column = _of(event)
    if isinstance(event, yaml.ScalarEvent):
        return Node("scalar", line, column, text=event.value, quoted=bool(event.style))
    if isinstance(event, yaml.SequenceStartEvent):
        return Node("list", line, column)
    return Node("map" if isinstance(event, yaml.MappingStartEvent) else "bad", line, column)


def _check_event(event: Any, node: Node, path: str, problems: Problems) -> None:
    if isinstance(event, yaml.AliasEvent):
        problems.add(node, path, f"an alias (*{event.anchor}) is not taken; write the value out")
        return
    if event.anchor is not None:
        problems.add(node, path, f"an anchor (&{event.anchor}) is not taken; remove it")
    if getattr(event, "tag", None) is not None:
        problems.add(node, path, "a tag (!...) is not taken; every option knows its type")


def _check_key(node: Node, path: str, seen: dict[str, int], problems: Problems) -> None:
    """Refuse a key that is no plain name, or stands twice; a refused one takes its value along."""
    if node.kind != "scalar":
        if node.kind != "bad":
            problems.add(node, path, "a list or mapping cannot be a key")
        return
    if node.text == "<<" and not node.quoted:
        problems.add(node, joined(path, node.text), "a merge key (<<) is not taken; write the options out")
    elif not node.text and not node.quoted:
        problems.add(node, path, "a key is missing before the ':'")
    elif "${" in node.text:
        problems.add(node, joined(path, node.text), "variables are filled into values, not into keys")
    elif node.text in seen:
        where = joined(path, node.text)
        problems.add(node, where, f"stands here a second time; the first is on line {seen[node.text]}")
    else:
        seen[node.text] = node.line
        return
    node.kind = "bad"


def _of(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _plain(error: yaml.MarkedYAMLError, text: str, line: int, column: int) -> str:
    said = str(error.problem or error.context or "not YAML")
    if said == "found character that cannot start any token":
        lines = text.splitlines()
        char = lines[line][column : column + 1] if line < len(lines) else ""
        if char == "\t":
            return "a tab; indent with spaces"
        return f"{char!r} cannot begin a value; put the value in quotes"
    return _PLAINER.get(said, f"not YAML: {said}")


def _place(text: str, error: yaml.reader.ReaderError) -> tuple[int, int]:
    # libyaml counts bytes here; the first character that it refuses is found again in the text
    for at, char in enumerate(text):
        if not (char in "\t\n\r\x85" or "\x20" <= char <= "\x7e" or "\xa0" <= char <= "\ud7ff" or char >= "\ue000"):
            return _line_column(text, at)
        if char in "\ufeff\ufffe\uffff":
            return _line_column(text, at)
    return 0, 0


def _line_column(text: str, at: int) -> tuple[int, int]:
    return text.count("\n", 0, at) + 1, at - (text.rfind("\n", 0, at) + 1) + 1
