"""What `relay run` shows: a few lines at the start, a line per state change, one calm progress line on a terminal."""

import time
from typing import Any, TextIO

import anyio

from relay import __version__

REFRESH_SECS = 1.0


class Screen:
    """Standard error of `relay run`: lines above, a progress line below where it is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._status: Any = None
        self._console: Any = None

    def line(self, text: str) -> None:
        """Print one line above the progress line."""
        if self._console is not None:
            from rich.text import Text

            self._console.print(Text.from_ansi(text), soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def banner(self, bridge: Any) -> None:
        """Say what runs, where to attach and how to look."""
        config = bridge.config
        from relay.redaction import Redactor

        count, shard = len(config.providers), config.shard
        part = "" if shard is None else f" (shard {shard.number} of {shard.dealt.count})"
        own = f"{count} provider{'s' if count != 1 else ''}, run {bridge.run}"
        rows = [f"relay {__version__} as {config.name!r}{part}, {own}"]
        for state in bridge.providers.values():
            section = state.config
            kinds: dict[str, int] = {}
            for sub in section.subscriptions:
                kinds[sub.channel] = kinds.get(sub.channel, 0) + 1
            what = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
            plural = "s" if len(section.connections) != 1 else ""
            how = "SIMULATED, made-up prices" if section.options.simulate else section.spec.title
            rows.append(f"  {section.name}: {what} over {len(section.connections)} connection{plural} ({how})")
        rows.append(f"  Redis: {Redactor().text(bridge.redis_url)}" + (" (bundled server)" if bridge.server else ""))
        prefix = bridge.intake.names.prefix
        # with a secret in it, or without the sentinels' one, an address is of no use: `relay tail` reads the config
        known = (
            bridge.redis_url == "redis://127.0.0.1:6379" or "@" in bridge.redis_url or "+sentinel:" in bridge.redis_url
        )
        url = "" if known else f" --url {bridge.redis_url}"
        if bridge.held is not None:
            rows = rows[:1]  # its supervisor has said the rest
        else:
            rows.append(f"  look: relay tail{url} '{prefix}quotes.*'")
        for row in rows:
            print(row, file=self._stream, flush=True)

    async def progress(self, bridge: Any) -> None:
        """Keep the progress line; nothing where the stream is no terminal."""
        if not self._terminal:
            return
        from rich.console import Console

        self._console = Console(file=self._stream, highlight=False)
        self._status = self._console.status("starting", spinner="dots", refresh_per_second=4)
        self._status.start()
        last_count, last_time = 0, time.monotonic()
        while True:
            await anyio.sleep(REFRESH_SECS)
            now = time.monotonic()
            count = sum(s.source.counts.published for s in bridge.providers.values())
            rate = (count - last_count) / (now - last_time)
            last_count, last_time = count, now
            live = sum(len(s.live) for s in bridge.providers.values())
            total = sum(len(s.feeds) for s in bridge.providers.values())
            waiting = bridge.outbox.size
            self._status.update(
                f"{rate:,.0f} msg/s  {count:,} messages  {live}/{total} connections  {len(bridge.outbox.topics)} topics"
                + (f"  {waiting / 1024:,.0f} KiB waiting" if waiting > 65536 else "")
            )

    def close(self) -> None:
        """Take the progress line away."""
        if self._status is not None:
            self._status.stop()
            self._status = self._console = None
