"""`relay run --shards` as it would be if a shard that hangs were killed after a second."""

from relay import supervisor
from relay.__main__ import main

supervisor.HANG_SECS = 1.0

if __name__ == "__main__":
    main()
