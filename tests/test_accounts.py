"""Accounts of several providers beside one another: their labels keep their topics apart."""

from pathlib import Path

import pytest
from relays import config_of

from relay.config import topics_of
from relay.errors import ConfigError

TWO = """
providers:
  aries: {simulate: true, account_id: A1%s}
  etoro: {simulate: true, quotes: [TSLA], orders: true%s}
"""


def test_two_accounts_of_one_label_are_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(TWO % ("", ""), tmp_path)
    (problem,) = caught.value.problems
    assert "orders.main would carry two accounts, of aries and etoro" in problem.text
    assert "`account: etoro`" in problem.text


def test_two_labels_keep_accounts_apart(tmp_path: Path) -> None:
    found = [topic.name for topic in topics_of(config_of(TWO % ("", ", account: copy"), tmp_path))]
    assert {"orders.main", "orders.copy", "positions.main", "deadletter.copy"} <= set(found)
    assert len(found) == len(set(found))


def test_a_simulated_account_and_a_live_one_never_meet(tmp_path: Path) -> None:
    text = TWO.replace("etoro: {simulate: true", "etoro: {api_key: ${K}, user_key: ${K}").replace("${K}", '"${K}"')
    found = [topic.name for topic in topics_of(config_of(text % ("", ""), tmp_path, K="key"))]
    assert {"orders.main", "sim.orders.main"} <= set(found)
