"""What sink and spool tell: how loud, in which words, and the status message that it becomes, if any."""

from collections.abc import Mapping

from relay.model import StatusEvent

TIDINGS: Mapping[str, tuple[str, str, StatusEvent | None]] = {
    "connected": ("info", "Redis is up", None),
    "lost": ("warning", "Redis is away: sockets are kept, messages wait", "degraded"),
    "holding": ("warning", "Redis takes nothing: messages wait", "degraded"),
    "recovered": ("info", "Redis is back", "recovered"),
    "owned": ("error", "another relay owns this topic, it is not written", "refused"),
    "confirmed": ("info", "entries without an answer had arrived: none is written twice", None),
    "fenced": ("error", "another relay of this name has taken over", None),
    "lease_refused": ("error", "a relay of this name is running", None),
    "topic_blocked": ("error", "Redis refuses this topic, the others go on", "degraded"),
    "topic_unblocked": ("info", "Redis takes this topic again", "recovered"),
    "topics_taken": ("warning", "topics were taken from their former owner", "notice"),
    "foreign_entries": ("error", "somebody else has written to this topic, it is stopped", "degraded"),
    "redis_lost": ("error", "Redis came back with less than it had taken", "degraded"),
    "healed": ("info", "Redis has again what it had lost", "recovered"),
    "stream_gone": ("warning", "a stream was deleted, it goes on with what is new", "degraded"),
    "restamped": ("warning", "the clock was behind the last run's: waiting entries got later times", None),
    "oom_trimmed": ("warning", "Redis is out of memory: our oldest entries were trimmed", "degraded"),
    "streams_trimmed": ("info", "oldest entries trimmed to the configured size", None),
    "spool_degraded": ("error", "the disk takes no spool: a crash can lose what Redis has not confirmed", "degraded"),
    "spool_recovered": ("info", "the spool is written again", "recovered"),
    "spool_full": ("warning", "the spool is full of what Redis lacks: sockets wait", "degraded"),
    "spool_damaged": ("error", "records of the spool are damaged", "degraded"),
    "spool_void": ("warning", "another node has written since: what this node's spool still held is void", "notice"),
    "spool_elsewhere": ("info", "spools for another Redis or of another relay lie here, which are not sent", None),
    "memory_high": ("warning", "memory is short: more waits on the disk, less in memory", "degraded"),
    "memory_fine": ("info", "memory is below its bound again", "recovered"),
    "unpublished": ("warning", "stored, but not published: Redis refuses PUBLISH", "degraded"),
    "node_lost": ("warning", "a node of the cluster is away: its topics wait, the others go on", "degraded"),
    "node_holding": ("warning", "a node of the cluster takes nothing: its topics wait, the others go on", "degraded"),
    "node_recovered": ("info", "the node is back", "recovered"),
    "node_replaced": ("info", "other nodes have taken over from a node that was away", "recovered"),
    "cluster_changed": ("info", "slots of the cluster are served by other nodes now", None),
    "stopped": ("debug", "sink stopped", None),
}
