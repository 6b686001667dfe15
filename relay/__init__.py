"""relay: one process that holds market-data WebSockets, normalizes every message and publishes it to Redis."""

__version__ = "0.1.0"
