"""Accepted messages on disk: they survive a crash of the relay and heal Redis."""

from relay.spool.layout import About
from relay.spool.segment import Found
from relay.spool.spool import Spool

__all__ = ["About", "Found", "Spool"]
