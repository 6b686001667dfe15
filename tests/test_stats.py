"""The conservation laws hold over every provider, and over what is thinned, repeated, refused."""

from pathlib import Path

import pytest
from relays import ROOT, relay_of, until

from relay import stats
from relay.config import load
from relay.outbox import Topic
from relay.providers import PROVIDERS
from relay.routes import Counts
from relay.simulator.faults import Faults
from relay.stats import Balance


def unread(path: str) -> str:
    raise FileNotFoundError(path)


@pytest.mark.fault
async def test_laws_hold_for_every_provider_whatever_it_sends(tmp_path: Path) -> None:
    text = (ROOT / "relay.yaml").read_text() + f"\nstate_dir: {tmp_path}\nsimulator: {{rate: 200, port: 0}}\n"
    config = load(text, "relay.yaml", environ={}, read_file=unread, providers=PROVIDERS)
    async with relay_of(config) as running:
        bridge = running.bridge
        sources = [state.source.counts for state in bridge.providers.values()]
        await until(lambda: all(counts.made > 100 for counts in sources), 20)
        bridge.simulator.set_faults(Faults(garbage_every=10, jump_every=7, repeat_every=5))
        await until(lambda: all(counts.made > 300 for counts in sources), 20)
        assert sum(counts.repeats for counts in sources) and sum(counts.rejects for counts in sources)
    for name, state in bridge.providers.items():
        law = stats.frames(feed.stats for feed in state.feeds)
        assert law.total > 300 and law.difference == 0, (name, law)
        law = stats.messages([state.source.counts])
        assert law.total > 300 and law.difference == 0, (name, law)
    topics = bridge.outbox.topics.values()
    law = stats.entries(topics, sources, bridge.intake.beside)
    assert law.total > 2000 and law.difference == 0, law
    assert [topic for topic in topics if stats.in_flight(topic, bridge.run)] == [], "Redis has all"


def test_a_difference_shows() -> None:
    counts = Counts()
    counts.made, counts.published, counts.repeats = 10, 7, 2
    assert stats.messages([counts]).difference == 1
    both = stats.messages([counts]) + Balance(5, dict.fromkeys(stats.messages([counts]).parts, 0))
    assert (both.total, both.difference) == (15, 6)
    topic = Topic("t", "trades", "p", 1)
    topic.seq, topic.acked = 5, "2000-3"
    assert (stats.in_flight(topic, 1500), stats.in_flight(topic, 3000)) == (2, 5)
