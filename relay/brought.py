"""The servers that a relay brings along, held while an exit stack is: the bundled Redis, the simulator.

Their addresses stand in the state folder meanwhile, for `relay tail`, `relay top` and others.
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from relay.config import EMBEDDED, Config, data_dir_of
from relay.embedded import EmbeddedServer

if TYPE_CHECKING:
    from relay.simulator.server import Simulator


async def redis_of(stack: contextlib.AsyncExitStack, config: Config) -> tuple[EmbeddedServer | None, str]:
    """Start the bundled server where the config has no other. Give it, and the address of Redis."""
    if config.redis.url != EMBEDDED:
        return None, config.redis.url
    server = EmbeddedServer(Path(data_dir_of(config)), port=config.redis.port)
    url = await server.start()
    stack.push_async_callback(server.stop)
    leave(stack, config, "redis_url", url)
    return server, url


async def simulator_of(stack: contextlib.AsyncExitStack, config: Config) -> "Simulator | None":
    """Start the simulator where a provider is simulated."""
    types = sorted(config.simulated_types)
    if not types:
        return None
    from relay.simulator.server import Simulator

    settings = config.simulator
    simulator = Simulator(types, rate=settings.rate, seed=settings.seed, port=settings.port)
    return await stack.enter_async_context(simulator)


def leave(stack: contextlib.AsyncExitStack, config: Config, name: str, url: str) -> None:
    """Leave an address in the state folder."""
    path = Path(config.state_dir) / name
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(url + "\n")
        stack.callback(path.unlink, missing_ok=True)
