"""The table of providers: adding one is its file, its frames file under tests, and one line here."""

from collections.abc import Mapping

from relay.providers import aries, binance, coinapi, coinbase, etoro, kraken, tickatlas
from relay.providers.base import ProviderSpec

_SPECS: tuple[ProviderSpec, ...] = (
    coinapi.SPEC,
    tickatlas.SPEC,
    aries.SPEC,
    etoro.SPEC,
    coinbase.SPEC,
    kraken.SPEC,
    binance.SPEC,
)

PROVIDERS: Mapping[str, ProviderSpec] = {spec.name: spec for spec in _SPECS}
"""Name of the type to its spec, in the order in which documentation lists them."""
