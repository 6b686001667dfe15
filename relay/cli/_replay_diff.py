"""The report of `relay replay --diff`."""

import json
import sys
from typing import Any

from relay.difference import Difference, TopicReport


def show(difference: Difference, *, as_json: bool) -> int:
    """Print the report; give the exit code: 1 where anything differs."""
    plain = difference.plain()
    if as_json:
        print(json.dumps({"differs": difference.found, **plain}, indent=2))
        return int(difference.found)
    for name, report in sorted(difference.topics.items()):
        if report.differs:
            _topic(name, report)
    totals = plain["totals"]
    words = [f"{totals.get(kind, 0):,} {kind}" for kind in ("same", "changed", "missing", "new")]
    if totals.get("renumbered"):
        words.append(f"{totals['renumbered']:,} renumbered")
    if totals.get("unknown"):
        words.append(f"{totals['unknown']:,} not comparable (the streams were trimmed)")
    print(", ".join(words))
    if not totals:
        print("relay: nothing to compare: neither the recording nor the streams hold messages there", file=sys.stderr)
    return int(difference.found)


def _topic(name: str, report: TopicReport) -> None:
    counts = [
        f"{count:,} {kind}" for kind in ("changed", "missing", "new", "renumbered") if (count := getattr(report, kind))
    ]
    print(f"{name}: {', '.join(counts)} ({report.same:,} same)")
    if report.fields:
        print("  fields: " + ", ".join(f"{field} {count:,}" for field, count in report.fields.most_common()))
    for example in report.examples:
        if example.kind == "changed":
            words = "; ".join(f"{k}: {_plain(old)} -> {_plain(new)}" for k, (old, new) in example.fields.items())
        else:
            words = " ".join(
                f"{k}={_plain(old if example.kind == 'missing' else new)}"
                for k, (old, new) in example.fields.items()
                if k not in ("provider", "ts_recv", "run", "seq")
            )
        print(f"  {example.kind} {example.id}  {words[:400]}")


def _plain(value: Any) -> str:
    if value is None:
        return "(absent)"
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)[:120]
