"""Every frame of ../shared/frames/<provider>.jsonl gives what expected_<provider>.jsonl holds (EXPECTED.md there)."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_etoro import feed_expected as feed_etoro

from relay import times
from relay.normalizer import Normalizer
from relay.providers import PROVIDERS
from relay.providers.base import Subscription

FRAMES = Path(__file__).resolve().parents[2] / "shared" / "frames"
RECEIVED = {
    "coinapi": times.iso_ns("2026-03-01T10:00:00Z"),
    "tickatlas": times.iso_ns("2026-03-12T09:48:00Z"),
    "etoro": times.iso_ns("2026-03-02T15:04:06Z"),
    "aries": times.iso_ns("2026-03-12T13:40:00Z"),
}
MARKET = {
    "quote", "trade", "bar", "book_snapshot", "book_delta", "rate", "greeks", "instrument", "order", "position",
    "balance", "account",
}  # fmt: skip
FREE_STATUS = {
    "opened", "authenticated", "subscribed", "unsubscribed", "closed", "fresh", "stale", "resync", "degraded",
    "recovered",
}  # fmt: skip
_TICKATLAS = ["EURUSD", "XAUUSD", "GBPUSD", "USDJPY", "BTCUSD", "US30.CASH"]
OPTIONS: dict[str, dict[str, Any]] = {
    "coinapi": {"api_key": "k"},
    "etoro": {"api_key": "k", "user_key": "u"},
    "aries": {"token": "FAKE.ACCESS.TOKEN"},
    "tickatlas": {"api_key": "k", "quotes": _TICKATLAS, "bars": {"1m": _TICKATLAS}},
}
SETUP: dict[str, Any] = {"etoro": feed_etoro}
"""Per provider: a function of its own that makes and feeds sessions where the file needs more than a plain feed."""


def load(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FRAMES / name).read_text().splitlines()]


def canonical(message: dict[str, Any], free: list[str]) -> dict[str, Any]:
    out = {k: v for k, v in message.items() if k not in ("ts_recv", "run", "seq", "origin") and k not in free}
    if out.get("side_estimated") is False:
        del out["side_estimated"]
    if out.get("type") == "order" and "kind" in out:
        out["kind"] = out["kind"].lower()
    return out


def same(ours: dict[str, Any], wanted: dict[str, Any], free: list[str]) -> bool:
    if wanted["type"] != ours["type"]:
        return False
    if wanted["type"] == "reject":
        return True
    if wanted["type"] == "session_ended":
        return bool(wanted["action"] == ours["action"])
    if wanted["type"] == "status":
        if wanted["event"] == "notice" or ours["event"] == "notice":
            events = {"notice", "degraded", "handover", "renewed"}
            if not (wanted["event"] in events and ours["event"] in events):
                return False
        elif wanted["event"] != ours["event"]:
            return False
        for key, value in wanted.items():
            if key in ("event", "type") or key in free:
                continue
            mine = ours.get(key)
            if key == "text":
                if value.lower() not in (mine or "").lower():
                    return False
            elif key == "code":
                if value.lower() != (mine or "").lower():
                    return False
            elif mine != value:
                return False
        if ours["event"] == "gap":
            return bool(ours.get("topic") or (ours.get("symbol") and ours.get("channel")))
        return True
    a, b = canonical(ours, free), canonical(wanted, free)
    if "reason" in b and b["type"] == "order":
        if b.pop("reason") not in a.pop("reason", ""):
            return False
    return a == b


def extra(ours: dict[str, Any], all_ours: list[dict[str, Any]]) -> bool:
    if ours["type"] != "status":
        return False
    if any(m["type"] == "session_ended" for m in all_ours):
        return True
    if ours["event"] == "gap":
        return ours.get("reason") == "disconnect" or (
            ours.get("reason") == "decode_error" and any(m["type"] == "reject" for m in all_ours)
        )
    return ours["event"] in FREE_STATUS


def fits(ours: list[dict[str, Any]], wanted: list[dict[str, Any]], free: list[str], many_rejects: bool) -> bool:
    left = list(ours)
    for want in wanted:
        for i, mine in enumerate(left):
            if same(mine, want, free):
                del left[i]
                if want["type"] == "status":  # several in a row with one event count as one
                    left = [
                        m
                        for m in left
                        if not (m["type"] == "status" and m["event"] == mine["event"] and same(m, want, free))
                    ]
                if want["type"] == "reject" and many_rejects:
                    left = [m for m in left if m["type"] != "reject"]
                break
        else:
            return False
    if not all(extra(m, ours) for m in left):
        return False
    order = [m for m in ours if m["type"] in MARKET]
    wanted_order = [m for m in wanted if m["type"] in MARKET]
    return len(order) == len(wanted_order)


def run(name: str) -> list[list[dict[str, Any]]]:
    spec = PROVIDERS[name]
    options = msgspec.convert(OPTIONS.get(name, {}), spec.options, strict=False)
    subscribed = spec.subscribed(options) or None
    normalizer = Normalizer(spec, options, subscribed, name=name)
    if name in SETUP:
        return SETUP[name](normalizer)  # type: ignore[no-any-return]
    now = RECEIVED[name]
    assert now is not None
    results: list[list[dict[str, Any]]] = []
    session: object = None
    login = next(
        (case["frame"] for case in load(f"{name}.jsonl") if '"authenticated"' in case["frame"] and case["dir"] == "in"),
        None,
    )
    for line in load(f"{name}.jsonl"):
        if line["dir"] == "out":
            results.append([])
            continue
        key = (line.get("scenario"), line.get("conn"), line.get("endpoint"))
        if key != session:
            normalizer.close(now)
            session = key
        if normalizer.session is None and name == "tickatlas" and login:
            normalizer.frame(login.encode(), now)
        entries, error = normalizer.frame(line["frame"].encode(), now, binary=line.get("opcode") == "binary")
        out = [json.loads(e.body) for e in entries if not is_copy(e.topic, json.loads(e.body))]
        if error is not None:
            out.append({"type": "session_ended", "action": error.action, "code": error.code, "text": error.text})
        results.append(out)
    return results


def is_copy(topic: str, message: dict[str, Any]) -> bool:
    return bool(message["type"] == "status" and message["event"] == "gap" and topic.startswith("status."))


def failures(name: str) -> list[str]:
    bad = []
    for expected, ours in zip(load(f"expected_{name}.jsonl"), run(name), strict=True):
        choices = expected.get("any_of") or [expected["out"]]
        free = expected.get("free", [])
        ours = [{k: v for k, v in m.items() if k not in ("ts_recv", "run", "seq")} for m in ours]
        if not any(fits(ours, choice, free, name in ("etoro", "aries")) for choice in choices):
            bad.append(f"line {expected['line']}: {expected.get('note', '')}\n  ours   {ours}\n  wanted {choices}")
    return bad


@pytest.mark.parametrize("name", [n for n in RECEIVED if n in PROVIDERS])
def test_expected_outputs(name: str) -> None:
    if not FRAMES.is_dir():
        pytest.skip(f"{FRAMES} is absent")
    bad = failures(name)
    assert not bad, "\n".join(bad)


def test_the_comparison_can_fail() -> None:
    trade = {"type": "trade", "price": "1.0", "symbol": "A"}
    assert fits([trade], [trade], [], False)
    assert not fits([trade | {"price": "1.00"}], [trade], [], False)
    assert not fits([], [trade], [], False)
    assert not fits([trade, trade], [trade], [], False)
    assert not fits([{"type": "status", "event": "quota"}], [], [], False)
    assert Decimal("1.0") == Decimal("1.00")
    assert Subscription("quotes", "A").param == ""
