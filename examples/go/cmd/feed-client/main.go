// Command feed-client follows the endpoint feed and prints one JSON line for each event, and never a key.
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
	replica := feed.NewReplica() // an authorization server calls replica.Get for each request
	client := feed.Client{ID: *id, Replica: replica, Observe: func(event string, details map[string]any) {
		details["event"] = event
		if staleness, complete := replica.Staleness(); complete && staleness < math.MaxInt64 { // proved at least once
			details["staleness_seconds"] = staleness.Seconds()
		}
		if out.Encode(details) != nil {
			stop() // the reader of the output has gone
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
