"""Every error of Redis and the one thing the sink does about it. None of them counts as delivered.

Only what a reply says is judged here; a lost connection, a time-out or half a reply is no reply: the sink connects
again, asks for the last id of every topic and goes on from there.
"""

from typing import Literal

from relay.errors import SinkError

Reaction = Literal[
    "wait", "trim", "reconnect", "rights", "load", "isolate", "block", "foreign", "cluster", "unsupported",
    "moved", "ask", "later",
]  # fmt: skip
"""wait: keep everything, ask again with growing pauses. trim: remove our oldest entries, then wait. reconnect: this
server cannot take writes or has no room for us, look again who answers at the address. rights: read the secret again,
reconnect, slowly. load: load our function library, then the same call. isolate: find the topic that is meant, block
that one. block: this topic alone waits and is tried again now and then. foreign: somebody else writes this stream,
blocked until a restart. cluster: wait, and say that the address names the wrong kind of server. unsupported: end the
process. Of a topic in a cluster, where nothing was written: moved: look at the map again, then ask the node that is
named. ask: the same call once to that node. later: keep it, ask again soon."""

REACTIONS: tuple[tuple[str, Reaction, str], ...] = (
    # beginning of the reply, reaction, what to tell the operator
    ("LOADING", "wait", "Redis reads its data from disk"),
    ("BUSY", "wait", "a script of somebody keeps Redis busy"),
    ("TRYAGAIN", "wait", "a cluster slot is being moved"),
    ("MASTERDOWN", "wait", "a replica answers and its master is away"),
    ("NOREPLICAS", "wait", "Redis wants more replicas before it takes writes (min-replicas-to-write)"),
    ("MISCONF", "wait", "Redis cannot write to its disk and refuses writes until it can"),
    ("CLUSTERDOWN", "wait", "the cluster does not serve all its slots"),
    ("OOM", "trim", "Redis is at maxmemory"),
    ("READONLY", "reconnect", "a replica answers, it takes no writes; looking for the master at the same address"),
    ("UNBLOCKED", "reconnect", "the server changed its role"),
    ("ERR max number of clients", "reconnect", "Redis has no connection left for us (maxclients)"),
    ("NOAUTH", "rights", "Redis wants a password: redis.password or redis.password_file"),
    ("WRONGPASS", "rights", "Redis refuses the user name or password"),
    ("ERR AUTH", "rights", "Redis refuses the password"),
    ("ERR Client sent AUTH", "rights", "a password is configured here and Redis has none"),
    ("NOPERM", "isolate", "the Redis user may not write this key"),
    ("NOSCRIPT", "load", "Redis has lost our functions"),
    ("ERR Function not found", "load", "Redis has lost our functions"),
    ("WRONGTYPE", "block", "the key holds something that is no stream: another program uses it"),
    ("ERR The ID specified in XADD", "foreign", "somebody else appends to this stream"),
    ("ERR The stream has exhausted", "foreign", "somebody else wrote the last possible id to this stream"),
    ("MOVED", "cluster", "this is a Redis Cluster: begin redis.url with redis+cluster:// or rediss+cluster://"),
    ("ASK", "cluster", "this is a Redis Cluster: begin redis.url with redis+cluster:// or rediss+cluster://"),
    ("CROSSSLOT", "cluster", "this is a Redis Cluster: begin redis.url with redis+cluster:// or rediss+cluster://"),
    (
        "ERR This instance has cluster support disabled",
        "cluster",
        "this is no Redis Cluster: begin redis.url with redis:// or rediss://",
    ),
    ("ERR unknown command", "unsupported", "this server has no functions; the relay needs Redis 7.0 or Valkey 7.2"),
    ("ERR Unknown Redis command", "unsupported", "a command that the relay needs is missing or renamed on this server"),
)
CLUSTER_REACTIONS: tuple[tuple[str, Reaction, str], ...] = (
    # the same for what a node of a cluster says of one topic
    ("MOVED", "moved", "another node serves this slot"),
    ("ASK", "ask", "this slot is being moved, and the topic has gone ahead"),
    ("TRYAGAIN", "later", "this slot is being moved, and half of the topic has gone ahead"),
    ("CROSSSLOT", "block", "the topic's stream and its writer key lie in different slots"),
)
UNKNOWN: tuple[Reaction, str] = ("wait", "Redis gave an error that the relay does not know")
"""It may mean the server or one topic: a topic that is refused again while others pass is blocked (`suspects`)."""


def reaction(reply: str, *, cluster: bool = False) -> tuple[Reaction, str]:
    """Look up what an error reply asks for: the reaction and what to tell the operator. `cluster`: of a node of one."""
    for prefix, what, text in (*CLUSTER_REACTIONS, *REACTIONS) if cluster else REACTIONS:
        if reply.startswith(prefix):
            if what == "isolate" and "command" in reply and " key" not in reply:
                return "rights", "the Redis user may not run a command that the relay needs (README, ACL)"
            return what, text
    return UNKNOWN


class Again(Exception):
    """The call cannot be made now; carries the reaction and the reply."""

    def __init__(self, what: str, text: str, reply: str) -> None:
        super().__init__(f"{text}: {reply}")
        self.what, self.text, self.reply = what, text, reply


class LeaseHeld(SinkError):
    """Another relay of this name runs; the text names the ways out."""


class Fenced(SinkError):
    """Another relay of this name has taken over: this one must not write any more."""


class Unsupported(SinkError):
    """The server cannot do what the relay needs; waiting will not mend that."""
