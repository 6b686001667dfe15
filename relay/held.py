"""What a supervisor holds once for all its shards: the embedded Redis and the simulator, as addresses."""

import msgspec

VARIABLE = "RELAY_SUPERVISED"
"""The environment variable by which a supervisor tells a shard about itself."""


class Held(msgspec.Struct, frozen=True):
    """`redis_url` empty: the one of the config. The rest serves what asks for a provider's simulated side."""

    supervisor: int
    """Its process id."""
    redis_url: str = ""
    simulated: dict[str, tuple[str, str]] = {}
    """Type of a provider to the addresses of its WebSocket and its REST."""

    def url(self, provider: str) -> str:
        """See Simulator."""
        return self.simulated[provider][0]

    def rest_url(self, provider: str) -> str:
        """See Simulator."""
        return self.simulated[provider][1]
