"""Read one topic by its stream: nothing is missed, however slow you are, up to the stream's length.

python python_stream.py [URL] [TOPIC] [ID of the last entry you handled]      (pip install redis)
"""

import json
import sys
import time

import redis

url, topic, last = [*sys.argv[1:], *("redis://127.0.0.1:6379", "trades.BTC-USD", "")[len(sys.argv) - 1 :]]
bus = redis.Redis.from_url(url, decode_responses=True)
run, seq = 0, 0
if not last:  # what is new from now on; not "$", which would lose what comes between two calls
    newest = bus.xrevrange(topic, count=1)
    last = newest[0][0] if newest else "0-0"
while True:
    try:
        found = bus.xread({topic: last}, count=500, block=2000)
    except (redis.ConnectionError, redis.TimeoutError):
        time.sleep(0.2)  # the server is away: go on behind `last` when it is back
        continue
    for _, entries in found or []:
        for entry_id, fields in entries:
            message = json.loads(fields["data"])
            if message["run"] == run and message["seq"] != seq + 1:
                print("gap", message["seq"] - seq - 1, "entries were trimmed before they were read", flush=True)
            run, seq = message["run"], message["seq"]
            print(entry_id, message["type"], message.get("price", ""), flush=True)  # numbers are text: Decimal(...)
            last = entry_id  # save it with your result, to go on from here after a restart
