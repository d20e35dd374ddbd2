// Command feed-client follows the endpoint feed and prints what happens, one JSON line an event; never a key.
//
//	feed-client [-id NAME] [-ca FILE [-token FILE] [-cert FILE -key FILE]] HOST:PORT...
package main

import (
	"context"
	"encoding/json"
	"flag"
	"log"
	"math"
	"os"
	"os/signal"
	"syscall"

	"pads-cdc/connect"
	"pads-cdc/feed"
)

func main() {
	host, _ := os.Hostname()
	id := flag.String("id", host, "name to be known by")
	options := connect.Flags()
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	out := json.NewEncoder(os.Stdout)
	replica := feed.NewReplica() // an authorization server calls its Get at each request
	client := feed.Client{ID: *id, Replica: replica, Observe: func(event string, details map[string]any) {
		details["event"] = event
		if staleness, complete := replica.Staleness(); complete && staleness < math.MaxInt64 { // proved, once
			details["staleness_seconds"] = staleness.Seconds()
		}
		if out.Encode(details) != nil {
			stop() // nobody reads it any more
		}
	}}
	var err error
	if client.Servers, err = connect.All(flag.Args(), options); err != nil {
		log.Fatal("feed-client: ", err)
	}
	if err := client.Run(ctx); ctx.Err() == nil {
		log.Fatal("feed-client: ", err)
	}
}
