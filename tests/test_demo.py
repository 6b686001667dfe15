"""relay.yaml as shipped: every provider at work in one run, every topic that `relay check` prints filled."""

import json
import os
import subprocess
import sys
from pathlib import Path

from relays import ROOT, Process, entries
from relays import topics as known

CONFIG = str(ROOT / "relay.yaml")


def planned() -> dict[str, str]:
    """Topics that the file would make, dead letters aside, and whose they are."""
    done = subprocess.run(
        [sys.executable, "-m", "relay", "check", "--json", "-c", CONFIG],
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    found = json.loads(done.stdout)["topics"]
    return {t["name"]: t.get("provider", "") for t in found if t["kind"] != "deadletter"}


def test_every_provider_fills_every_topic(tmp_path: Path) -> None:
    wanted = planned()
    with Process(tmp_path, "run", "-c", CONFIG) as relay:
        relay.until(lambda: "Redis:" in relay.text, 10)
        relay.until(lambda: not set(wanted) - known(relay.url), 15)
        messages = {name: entries(relay.url, name)[-1][1] for name in wanted}
        assert relay.stop() == 0
    assert {m["provider"] for m in messages.values()} >= set(wanted.values()) - {""}
    prices = {name: m for name, m in messages.items() if wanted[name] and m["type"] != "status"}
    assert {m["origin"] for m in prices.values()} == {"simulated"}
    assert {"orders.aries", "orders.etoro", "positions.aries", "balances.aries", "account.aries"} <= set(prices)
