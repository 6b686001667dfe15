"""`${VAR}`, `${VAR:-default}` and `${VAR:?why}` in one text; `$${` stands for a plain `${`.

The environment is handed in; what a variable holds is never expanded again.
"""

import re
from collections.abc import Mapping

_VARIABLE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_BODY = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:(:-|:\?)(.*))?", re.DOTALL)
_SHOWN_CHARS_MAX = 40


def expand(text: str, environ: Mapping[str, str], *, cure: str = "") -> tuple[str, list[str]]:
    """Fill in the variables of a text; give it and what is wrong (empty: nothing). Values are not expanded again.

    As in a shell, `:-` and `:?` take an empty variable for an unset one. `cure`: what else helps, for the error's text.
    """
    wrong: list[str] = []

    def fill(match: re.Match[str]) -> str:
        body, closed = match.group(1), match.group(2)
        if body is None:
            return "${"
        if not closed:
            wrong.append("a '${' without its '}'; write $${ for a plain ${")
            return ""
        found = _BODY.fullmatch(body)
        if found is None or "${" in body:
            shown = body if len(body) <= _SHOWN_CHARS_MAX else body[:_SHOWN_CHARS_MAX] + "..."
            wrong.append(
                f"'${{{shown}}}' is no variable; ${{VAR}}, ${{VAR:-default}} and ${{VAR:?why}} are, $${{ is a plain ${{"
            )
            return ""
        name, operator, rest = found.groups()
        value = environ.get(name)
        if operator == ":-":
            return value or str(rest)
        if operator == ":?":
            if not value:
                wrong.append(f"the variable {name} is not set: {rest or 'it is needed here'}")
            return value or ""
        if value is None:
            wrong.append(f"the variable {name} is not set; export it, or write ${{{name}:-default}}{cure}")
        return value or ""

    return _VARIABLE.sub(fill, text), wrong
