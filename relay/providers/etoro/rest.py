"""eToro's REST side, sans-IO: what to ask, in which portions, what to do about each refusal.

Batches of 50 ids with literal commas (percent-encoded ones answer 500 [measured]), halved on 400 and 500, because one
bad id fails a whole batch; at most 50 calls a minute; 429 pauses; other failures are tried again a few times.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from relay.errors import HandshakeRefused
from relay.model import Status
from relay.providers.base import Output, Reply, Request, reject
from relay.providers.etoro import wire
from relay.providers.etoro.options import ALTERNATE_REST_END, REQUESTS, REST_URL
from relay.providers.etoro.reference import EtoroShared
from relay.providers.etoro.wire import Object

Kind = Literal["search", "universe", "items", "exchanges", "kinds", "rates", "closing"]

BATCH = 50
IN_FLIGHT_MAX = 2
"""Calls under way at one time and session: fallback and metadata must not queue up behind each other."""
TRIES_MAX = 3
RETRY_SECS = (1.0, 2.0, 4.0)
GIVE_UP_SECS = 300.0
"""After the last try of a call that matters (names, metadata) it is asked again this much later."""
RATE_PAUSE_SECS = 60.0
SEARCHES_MAX = 10
"""More unknown names than this are looked up in the full list: one call in place of one a name."""
BODY_BYTES_MAX = 64 * 1024 * 1024
"""The full list has some 12,700 rows with images; 64 MiB leaves room for five times that."""

_FIELDS = "instrumentId,internalSymbolFull,displayname"


@dataclass
class Job:
    """One thing to ask; `keys` are ids, or the names of a search."""

    kind: Kind
    keys: tuple[str, ...] = ()
    tries: int = 0
    due_ns: int = 0
    fields: bool = False
    """A search that was refused without a field list is asked again with one."""


@dataclass
class Answered:
    """The rows of one answered job; `missing` are keys that the provider does not know."""

    job: Job
    rows: Sequence[Object] = ()
    missing: tuple[str, ...] = ()


class Rest:
    """The REST calls of one session."""

    def __init__(self, shared: EtoroShared) -> None:
        self.shared = shared
        self.queue: deque[Job] = deque()
        self.flying: dict[str, Job] = {}
        options = shared.options
        base = (options.rest_url or REST_URL).rstrip("/")
        self._base = base + ("/v1" if base.endswith(ALTERNATE_REST_END) else "/api/v1")

    # -- asking --

    def ask(self, kind: Kind, keys: Sequence[str] | None = None, size: int = BATCH) -> None:
        """Queue a question (in batches, where it has keys); what is queued or under way already is not asked twice."""
        waiting = {key for job in (*self.queue, *self.flying.values()) if job.kind == kind for key in job.keys or ("",)}
        if keys is None:
            if "" not in waiting:
                self.queue.append(Job(kind))
            return
        left = [key for key in keys if key not in waiting]
        for start in range(0, len(left), size):
            self.queue.append(Job(kind, tuple(left[start : start + size])))

    def ask_names(self, names: Sequence[str]) -> None:
        """Ask for the ids of names: one search a name, or the full list where there are many."""
        if len(names) > SEARCHES_MAX:
            self.ask("universe")
        else:
            self.ask("search", names, size=1)

    def busy(self, kind: Kind) -> bool:
        """Tell whether a question of this kind is queued or under way."""
        return any(job.kind == kind for job in (*self.queue, *self.flying.values()))

    def requests(self, now_ns: int) -> list[Request]:
        """Give the calls that may go out now, within the budget of all sessions."""
        shared = self.shared
        out: list[Request] = []
        if not self.queue or shared.rest_off or now_ns < shared.rest_until_ns:
            return out
        for _ in range(len(self.queue)):
            calls = shared.calls
            spent = len(calls) == REQUESTS[0] and now_ns - calls[0] < REQUESTS[1] * 1e9
            if spent or len(self.flying) >= IN_FLIGHT_MAX:
                break
            job = self.queue.popleft()
            if job.due_ns > now_ns:
                self.queue.append(job)
                continue
            calls.append(now_ns)
            tag = f"{job.kind}-{shared.next_id()}"
            self.flying[tag] = job
            out.append(Request(tag, "GET", self._base + _path(job), self._headers(), body_bytes_max=BODY_BYTES_MAX))
        return out

    def _headers(self) -> dict[str, str]:
        api_key, user_key = self.shared.options.keys()
        return {
            "x-api-key": api_key,
            "x-user-key": user_key,
            "x-request-id": self.shared.request_id(),
            "accept": "application/json",
            # the alternate host answers 403 to what does not look like a browser [measured]
            "user-agent": "Mozilla/5.0 (compatible; market-relay)",
        }

    # -- answers --

    def replied(self, reply: Reply, now_ns: int, proven: bool, out: list[Output]) -> Answered | None:
        """Take one answer: its rows, or None where it must be asked again or was refused (statuses in `out`).

        `proven`: the stream has accepted the keys, so that a refusal here concerns REST alone.
        """
        job = self.flying.pop(reply.tag, None)
        if job is None:
            return None
        status = reply.status
        if status == 204:
            return Answered(job, (), job.keys)
        if 200 <= status < 300:
            try:
                return Answered(job, _rows(job, wire.decode(reply.body)))
            except (*wire.BROKEN, ValueError) as error:
                out.append(reject("bad_field", f"REST {job.kind}: {error}", reply.body[:1000]))
                return self._again(job, now_ns, "unreadable", "the answer cannot be read", out)
        code, text = _refusal(reply)
        if status == 429:
            wait = _retry_after(reply)
            self.shared.rest_until_ns = now_ns + int(wait * 1e9)
            self.queue.appendleft(job)
            out.append(
                Status(event="quota", code=code, text=f"REST: {text}", action="pause", until=self.shared.rest_until_ns)
            )
            return None
        if status in (401, 403) and not (status == 403 and reply.body.lstrip()[:1] == b"<"):
            if not proven:
                raise HandshakeRefused(f"eToro refused the keys over REST: {text}", code=code, action="fatal")
            self.shared.rest_off = code
            self.queue.clear()
            out.append(Status(event="degraded", code=code, text=f"REST is not asked any more: {text}", action="stop"))
            return None
        if status in (400, 404, 500) and job.kind in ("items", "rates") and len(job.keys) > 1 and status != 404:
            half = len(job.keys) // 2
            self.queue.appendleft(Job(job.kind, job.keys[half:]))
            self.queue.appendleft(Job(job.kind, job.keys[:half]))
            return None
        if status == 400 and job.kind == "search" and not job.fields:
            self.queue.appendleft(Job(job.kind, job.keys, fields=True))
            return None
        if status in (400, 404):
            return Answered(job, (), job.keys)
        return self._again(job, now_ns, code, text, out)

    def _again(self, job: Job, now_ns: int, code: str, text: str, out: list[Output]) -> Answered | None:
        """Put a failed job back; after the last try names and metadata wait, prices are left to the next round."""
        job.tries += 1
        if job.tries < TRIES_MAX:
            job.due_ns = now_ns + int(RETRY_SECS[job.tries - 1] * 1e9)
            self.queue.append(job)
            return None
        if code == "500" and job.kind == "items":
            return Answered(job, (), job.keys)
        out.append(Status(event="degraded", code=code, text=f"REST {job.kind}: {text}"))
        if job.kind not in ("rates", "closing"):
            self.queue.append(Job(job.kind, job.keys, due_ns=now_ns + int(GIVE_UP_SECS * 1e9), fields=job.fields))
        return None


def _path(job: Job) -> str:
    """Path and query of a job, behind the version prefix."""
    data = "/market-data"
    match job.kind:
        case "search":
            fields = f"&fields={_FIELDS}" if job.fields else ""
            return f"{data}/search?internalSymbolFull={quote(job.keys[0], safe='')}{fields}"
        case "universe":
            return f"{data}/instruments"
        case "items":
            return f"{data}/instruments?instrumentIds={','.join(job.keys)}"
        case "exchanges":
            return f"{data}/exchanges"
        case "kinds":
            return f"{data}/instrument-types"
        case "rates":
            return f"{data}/instruments/rates?instrumentIds={','.join(job.keys)}"
        case "closing":
            return f"{data}/instruments/history/closing-price"


_LISTS: dict[str, str] = {
    "search": "items",
    "universe": "instrumentdisplaydatas",
    "items": "instrumentdisplaydatas",
    "exchanges": "exchangeinfo",
    "kinds": "instrumenttypes",
    "rates": "rates",
    "closing": "closingprices",
}


def _rows(job: Job, value: Any) -> list[Object]:
    """Give an answer's rows with names in lower case. Raises: ValueError where it is no answer to the job."""
    if isinstance(value, dict):
        folded = {str(key).lower(): item for key, item in value.items()}
        value = folded.get(_LISTS[job.kind], folded.get("data"))
        if isinstance(value, dict):
            value = [value]
    if not isinstance(value, list):
        raise ValueError(f"no list of {_LISTS[job.kind]}")
    return [{str(key).lower(): item for key, item in row.items()} for row in value if isinstance(row, dict)]


def _refusal(reply: Reply) -> tuple[str, str]:
    """Read code and text of a refusal in any of its three shapes; the HTTP status where it has none."""
    if not reply.status:
        return "unreachable", reply.error or "no answer"
    code, text = str(reply.status), f"HTTP {reply.status}"
    if reply.body.lstrip()[:1] == b"<":
        return code, f"{text}: a page, not the API (a proxy or Cloudflare; it may want another User-Agent)"
    try:
        value = wire.decode(reply.body)
    except wire.BROKEN:
        return code, text
    if isinstance(value, dict):
        inner = value.get("error")
        source = inner if isinstance(inner, dict) else value
        word = wire.text_of(source.get("errorCode") or source.get("code"))
        told = wire.text_of(source.get("errorMessage") or source.get("message"))
        text = ": ".join(part for part in (text, word, told) if part)
    return code, text


def _retry_after(reply: Reply) -> float:
    """Seconds to wait after a 429; a minute where the answer names none."""
    wait = wire.integer(reply.headers.get("retry-after"))
    return float(wait) if wait is not None and 0 < wait <= 3600 else RATE_PAUSE_SECS


def closing_price(row: Object) -> tuple[str, int | None] | None:
    """Give the official closing price of a row and its time; None where it has none (-1)."""
    try:
        price = wire.price(row.get("officialclosingprice"))
    except ValueError:
        return None
    if price is None:
        return None
    daily: Any = row.get("closingprices")
    for name in ("daily", "date"):
        folded = {str(k).lower(): v for k, v in daily.items()} if isinstance(daily, dict) else {}
        daily = folded.get(name)
    return price, wire.time_ns(daily)
