"""The providers' own sides of the wire, on loopback: for the demo, for tests, for chaos."""

from collections.abc import Mapping

from relay.simulator import aries, binance, coinapi, coinbase, etoro, kraken, tickatlas
from relay.simulator.base import SideSpec

SIDES: Mapping[str, SideSpec] = {
    "coinapi": coinapi.SIDE,
    "tickatlas": tickatlas.SIDE,
    "aries": aries.SIDE,
    "etoro": etoro.SIDE,
    "coinbase": coinbase.SIDE,
    "kraken": kraken.SIDE,
    "binance": binance.SIDE,
}
"""Provider type to its side."""
