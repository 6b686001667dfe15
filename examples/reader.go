// Read one topic by its stream. Not run by our tests. go get github.com/redis/go-redis/v9
// go run reader.go [URL] [TOPIC] [ID of the last entry you handled]
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
)

func arg(n int, otherwise string) string {
	if len(os.Args) > n {
		return os.Args[n]
	}
	return otherwise
}

func main() {
	ctx := context.Background()
	options, err := redis.ParseURL(arg(1, "redis://127.0.0.1:6379"))
	if err != nil {
		panic(err)
	}
	bus, topic, last := redis.NewClient(options), arg(2, "trades.BTC-USD"), arg(3, "")
	if last == "" { // what is new from now on; not "$", which would lose what comes between two calls
		last = "0-0"
		if newest, err := bus.XRevRangeN(ctx, topic, "+", "-", 1).Result(); err != nil {
			panic(err)
		} else if len(newest) > 0 {
			last = newest[0].ID
		}
	}
	for {
		found, err := bus.XRead(ctx, &redis.XReadArgs{
			Streams: []string{topic, last}, Count: 500, Block: 2 * time.Second,
		}).Result()
		if errors.Is(err, redis.Nil) {
			continue // nothing came in time
		}
		if err != nil {
			time.Sleep(200 * time.Millisecond) // go on behind `last` when it is back
			continue
		}
		for _, entry := range found[0].Messages {
			fmt.Println(entry.ID, entry.Values["data"]) // JSON; decode prices as string, times as int64
			last = entry.ID                             // save it with your result, to go on from here after a restart
		}
	}
}
