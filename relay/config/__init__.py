"""relay.yaml to frozen structs: strict, with the place of every error, and all errors at once.

Pure: the environment, the reading of files and the table of providers are handed in. `document` makes a tree of nodes
of the text, `values` reads nodes as the types of struct fields, `sections` and `redis_target` check what types cannot
say, `planned` tells which topics come of it.
"""

from relay.config.addresses import shown_url
from relay.config.document import DOCUMENT_BYTES_MAX
from relay.config.loading import load, secrets_of
from relay.config.planned import SIMULATED_PREFIX, PlannedTopic, data_dir_of, names_of, prefix_of, topics_of
from relay.config.structs import (
    EMBEDDED,
    Config,
    Dealt,
    HttpConfig,
    JournalConfig,
    LogConfig,
    OutboxConfig,
    ProviderConfig,
    RedisConfig,
    Settings,
    Shard,
    SimulatorConfig,
    SpoolConfig,
    StandbyConfig,
)

__all__ = [
    "DOCUMENT_BYTES_MAX",
    "EMBEDDED",
    "SIMULATED_PREFIX",
    "Config",
    "Dealt",
    "HttpConfig",
    "JournalConfig",
    "LogConfig",
    "OutboxConfig",
    "PlannedTopic",
    "ProviderConfig",
    "RedisConfig",
    "Settings",
    "Shard",
    "SimulatorConfig",
    "SpoolConfig",
    "StandbyConfig",
    "data_dir_of",
    "load",
    "names_of",
    "prefix_of",
    "secrets_of",
    "shown_url",
    "topics_of",
]
