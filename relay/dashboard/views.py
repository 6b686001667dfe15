"""Messages as the page takes them: short lists and plain words. Pure."""

from typing import Any

from relay.model import Bar, Message, Quote, Rate, Status, Trade


def item(message: Message) -> list[Any]:
    """One message as the page's detail takes it; the first element says what follows."""
    ms = message.ts_recv // 1_000_000
    match message:
        case Quote():
            return ["q", ms, message.bid, message.ask, message.mid or message.last, message.origin]
        case Trade():
            return ["t", ms, message.price, message.size, message.side, message.side_estimated, message.venue]
        case Bar():
            return [
                "b", message.start // 1_000_000, message.interval, message.open, message.high, message.low,
                message.close, message.volume or message.ticks, message.closed,
            ]  # fmt: skip
        case Rate():
            return ["q", ms, None, None, message.value, message.origin]
        case Status():
            text = gap_text(message) if message.event == "gap" else message.text or ""
            return ["s", ms, message.event, text, message.channel]
        case _:
            return ["?", ms]


def notice(status: Status, number: int) -> dict[str, Any]:
    """One status as the page's list of notices takes it."""
    text = gap_text(status) if status.event == "gap" else status.text or ""
    if status.event == "market" and not text:
        text = "halted" if status.halted else "closed" if status.open is False else "open"
    return {
        "n": number,
        "ms": status.ts_recv // 1_000_000,
        "event": status.event,
        "provider": status.provider,
        "about": status.topic or status.symbol or status.channel or "",
        "code": status.code or "",
        "text": " - ".join(filter(None, (text, status.action))),
    }


def gap_text(status: Status) -> str:
    """A gap in words."""
    parts = [str(status.reason or "gap").replace("_", " ")]
    if status.missing is not None:
        parts.append(f"{status.missing} missing")
    if status.first_missing is not None and status.last_missing is not None:
        parts.append(f"numbers {status.first_missing} to {status.last_missing}")
    if status.from_ns and status.to_ns and status.to_ns > status.from_ns:
        parts.append(f"{(status.to_ns - status.from_ns) / 1e9:.1f} s")
    return ", ".join(parts)
