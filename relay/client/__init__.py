"""A small typed reader of the relay's topics, for Python programs of any kind.

    from relay.client import Client, Cursor, Gap

    client = Client("redis://127.0.0.1:6379")
    async for item in client.read("quotes.*"):           # names or globs; topics that come later too
        if isinstance(item, Gap):
            ...                                          # exactly what is missing, and where
        else:
            print(item.topic, item.id, item.message)     # a struct of relay.model

`read_sync` is the same without asyncio, `share` divides the work in a consumer group. It imports nothing of the relay
but the messages and their coder; redis and msgspec are imported at the first read.
"""

from relay.client.client import Client
from relay.client.cursor import Cursor
from relay.client.items import ClientError, Gap, GapError, Item, Refused, Unreachable

__all__ = ["Client", "ClientError", "Cursor", "Gap", "GapError", "Item", "Refused", "Unreachable"]
