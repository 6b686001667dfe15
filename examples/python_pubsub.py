"""Read one topic by pub/sub, the shortest way, and fill what it loses (reconnects, slowness) from the stream.

python python_pubsub.py [URL] [TOPIC] [ID of the last entry you handled]      (pip install redis)
"""

import json
import sys
import time

import redis

url, topic, start = [*sys.argv[1:], *("redis://127.0.0.1:6379", "trades.BTC-USD", "")[len(sys.argv) - 1 :]]
bus = redis.Redis.from_url(url, decode_responses=True)
if not start:
    newest = bus.xrevrange(topic, count=1)
    start = newest[0][0] if newest else "0-0"
ms, number = map(int, start.split("-"))
last = (ms, number)  # id of the last entry that was handled
run = 0


def handle(data):
    global last, run
    message = json.loads(data)
    last, run = (message["ts_recv"] // 1_000_000, message["seq"]), message["run"]
    print(f"{last[0]}-{last[1]}", message["type"], message.get("price", ""), flush=True)


def catch_up():
    """Read from the stream what lies behind the last handled entry."""
    while entries := bus.xrange(topic, f"({last[0]}-{last[1]}", "+", count=1000):
        for entry_id, fields in entries:
            if run and json.loads(fields["data"])["run"] == run and int(entry_id.split("-")[1]) != last[1] + 1:
                print("gap: entries were trimmed before they were read", flush=True)
            handle(fields["data"])


while True:
    try:
        with bus.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe(topic)
            channel.get_message(timeout=5)  # the confirmation: from here on nothing is missed,
            catch_up()  # and what came before is in the stream
            while True:
                pushed = channel.get_message(timeout=2)
                if pushed is None:
                    catch_up()  # quiet: was something stored and not published?
                    continue
                message = json.loads(pushed["data"])
                if (message["ts_recv"] // 1_000_000, message["seq"]) <= last:
                    continue  # had from the stream
                if message["run"] == run and message["seq"] == last[1] + 1:
                    handle(pushed["data"])
                else:
                    catch_up()  # a hole, or a new run of the relay; the stream has this message too
    except (redis.ConnectionError, redis.TimeoutError):
        time.sleep(0.2)
