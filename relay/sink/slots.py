"""A cluster's map: which node serves which slot, put together from what the nodes themselves say. Pure.

A node's own word counts most, and of two that claim a slot the one with the newer epoch: so a primary that was cut off
from the others does not keep the slots that its replica has taken over.
"""

import binascii
from collections.abc import Iterable
from typing import Any, NamedTuple

from relay.targets import shown

SLOTS = 16_384


def slot_of(key: str) -> int:
    """Give the slot of a key: the CRC16 (XMODEM) of what stands in its first braces, or of all of it."""
    begin = key.find("{")
    if begin >= 0:
        end = key.find("}", begin + 1)
        if end > begin + 1:
            key = key[begin + 1 : end]
    return binascii.crc_hqx(key.encode(), 0) % SLOTS


class View(NamedTuple):
    """What one node says: who it is, its epoch, first and last slot with the owner, addresses by node."""

    node: str
    epoch: int
    ranges: tuple[tuple[int, int, str], ...]
    places: dict[str, str]

    def owners(self) -> set[str]:
        """Give the addresses of the nodes that it names as owners."""
        return {self.places[owner] for _, _, owner in self.ranges}


class Slots:
    """Addresses (`host:port`) by slot; empty: nobody serves it."""

    def __init__(self, owners: list[str] | None = None) -> None:
        self.owners = owners or [""] * SLOTS
        self.nodes = {owner for owner in self.owners if owner}

    def of(self, key: str) -> str:
        """Give the address of the node that serves a key."""
        return self.owners[slot_of(key)]

    def moved(self, slot: int, address: str) -> "Slots":
        """Give the map with one slot served by another node."""
        owners = self.owners.copy()
        owners[slot] = address
        return Slots(owners)

    def changes(self, other: "Slots") -> int:
        """Count the slots that another map gives to other nodes."""
        return sum(one != two for one, two in zip(self.owners, other.owners, strict=True))


def read_view(slots: Any, info: Any, node: Any, host: str) -> View:
    """Read the replies to CLUSTER SLOTS, CLUSTER INFO and CLUSTER MYID of the node at `host`."""
    ranges, places = [], {}
    for first, last, *nodes in slots:
        for number, (name, port, *more) in enumerate(nodes):
            place = _text(name)
            place = shown((host if place in ("", "?") else place, port))
            one = _text(more[0]) if more else place
            places[one] = place
            if number == 0:
                ranges.append((first, last, one))
    known = dict(line.partition(":")[::2] for line in _text(info).split())
    epoch = known.get("cluster_my_epoch", "")
    return View(_text(node), int(epoch) if epoch.isdecimal() else 0, tuple(sorted(ranges)), places)


def merge(views: Iterable[View]) -> Slots:
    """Make one map of what several nodes say."""
    known = {view.node: view for view in views}
    claims: list[tuple[int, int, int, int, str]] = []
    for view in known.values():
        for first, last, owner in view.ranges:
            # its own word; of one that was not heard; of one that was heard and does not say so itself (yet)
            weight = 2 if owner == view.node else 0 if owner in known else 1
            claims.append((weight, view.epoch, first, last, view.places[owner]))
    owners = [""] * SLOTS
    for _, _, first, last, place in sorted(claims):
        owners[first : last + 1] = [place] * (last + 1 - first)
    return Slots(owners)


def redirect(reply: str, host: str) -> tuple[int, str]:
    """Read `MOVED 3999 127.0.0.1:6381` or `ASK ...` of the node at `host`: the slot, and the address to go to."""
    _, slot, place = reply.split(" ")[:3]
    name, _, port = place.rpartition(":")
    name = name.strip("[]")
    return int(slot), shown((host if name in ("", "?") else name, int(port)))


def host_of(address: str) -> str:
    """Give the host of an address."""
    return address.rpartition(":")[0].strip("[]")


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""
