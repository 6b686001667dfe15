#!/bin/sh
# Look at the bus with nothing but redis-cli (7.0 or newer).
# sh redis_cli.sh [URL] [TOPIC]
url=${1:-redis://127.0.0.1:6379} topic=${2:-trades.BTC-USD}

redis-cli -u "$url" HKEYS relay:topics                              # which topics are there
redis-cli -u "$url" XREVRANGE "$topic" + - COUNT 1                  # the newest message
redis-cli -u "$url" XRANGE "$topic" - + COUNT 3                     # the oldest that are kept
redis-cli -u "$url" XRANGE "$topic" "$(($(date +%s) - 60))000" + COUNT 3   # of the last minute: ids begin with the time
redis-cli -u "$url" XREAD COUNT 100 BLOCK 2000 STREAMS "$topic" 0-0 # behind an id, waiting up to 2 s
# redis-cli -u "$url" SUBSCRIBE "$topic"                            # live, until Ctrl-C
