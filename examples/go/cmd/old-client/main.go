// Command old-client uses the legacy contract as deployed clients of the given generation do. It prints one JSON line for
// each event, and never a key.
//
//	old-client [-generation 1|2|3] [-ca FILE [-token FILE] [-cert FILE -key FILE]] HOST:PORT
//
//	generation        | 1                  | 2               | 3
//	------------------|--------------------|-----------------|----------------------------------------------------
//	the first fetch   | fatal if it fails  | again every 2 s | again after 0.5 s, then after 1.5 times that, ten times
//	each stream       |                    |                 | is preceded by another fetch, which may fail
//	ends with OK      | opened at once     | opened at once  | opened after 0.1 s
//	... with an error | opened after 2 s   | opened after 2 s| opened after 2 s, then after 1.5 times that, up to 30 s;
//	                  |                    |                 | only an end with OK resets it to 2 s
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"pads-cdc/connect"
	"pads-cdc/feed"
	gateway "pads-cdc/gen/proto"
)

const (
	delay      = 2 * time.Second
	longest    = 30 * time.Second
	afterOK    = 100 * time.Millisecond
	firstFetch = 500 * time.Millisecond
	fetches    = 10
)

type client struct {
	server    gateway.GatewayEndpointsClient
	endpoints map[string]*gateway.GatewayEndpoint
	digest    feed.Sum // of the map, to compare maps in tests: this contract has no digest
	out       *json.Encoder
}

func main() {
	options := connect.Flags()
	generation := flag.Int("generation", 1, "how to behave, from 1 to 3")
	flag.Parse()
	if flag.NArg() != 1 || *generation < 1 || *generation > 3 {
		log.Fatal("old-client: where is the server? For example: old-client -generation 3 127.0.0.1:10002")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	connection, err := connect.To(flag.Arg(0), options)
	if err != nil {
		log.Fatal("old-client: ", err)
	}
	c := client{
		server:    gateway.NewGatewayEndpointsClient(connection),
		endpoints: map[string]*gateway.GatewayEndpoint{},
		out:       json.NewEncoder(os.Stdout),
	}
	c.start(ctx, *generation)
	retry := delay
	for ctx.Err() == nil {
		if *generation == 3 {
			if err := c.fetch(ctx); err != nil {
				c.tell("unfetched", err.Error())
			}
		}
		switch err := c.follow(ctx); {
		case !errors.Is(err, io.EOF):
			c.tell("lost", err.Error())
			sleep(ctx, retry)
			if *generation == 3 {
				retry = min(retry*3/2, longest)
			}
		case *generation == 3:
			c.tell("ended", "")
			sleep(ctx, afterOK)
			retry = delay
		default:
			c.tell("ended", "")
		}
	}
}

// start fetches for the first time.
func (c *client) start(ctx context.Context, generation int) {
	retry := firstFetch
	for attempt := 1; ; attempt++ {
		err := c.fetch(ctx)
		if err == nil {
			return
		}
		if generation == 1 || ctx.Err() != nil || (generation == 3 && attempt == fetches) {
			log.Fatal("old-client: ", err)
		}
		c.tell("unfetched", err.Error())
		if generation == 2 {
			sleep(ctx, delay)
		} else {
			sleep(ctx, retry)
			retry = retry * 3 / 2
		}
	}
}

// fetch replaces the map. It keeps gRPC's limit of 4 MiB for each message, as deployed clients do.
func (c *client) fetch(ctx context.Context) error {
	response, err := c.server.FetchAuthDataSync(ctx, &gateway.AuthDataRequest{})
	if err != nil {
		return err
	}
	for id := range c.endpoints {
		c.remove(id)
	}
	for id, endpoint := range response.Endpoints {
		c.put(id, endpoint)
	}
	c.tell("fetched", "")
	return nil
}

// follow returns when the stream ends, with its error: io.EOF for OK.
func (c *client) follow(ctx context.Context) error {
	c.tell("opening", "")
	stream, err := c.server.StreamAuthDataUpdates(ctx, &gateway.AuthDataUpdatesRequest{})
	if err != nil {
		return err
	}
	if header, err := stream.Header(); err == nil && header != nil { // a refused call has no header
		c.tell("opened", "")
	}
	for {
		update, err := stream.Recv()
		if err != nil {
			return err
		}
		if update.Delete {
			c.remove(update.EndpointId)
		} else {
			c.put(update.EndpointId, update.GatewayEndpoint)
		}
		c.tell("updated", update.EndpointId)
	}
}

func sleep(ctx context.Context, duration time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(duration):
	}
}

func min(a, b time.Duration) time.Duration { // Debian 12's Go has none
	if a < b {
		return a
	}
	return b
}

func (c *client) put(id string, endpoint *gateway.GatewayEndpoint) {
	c.remove(id)
	c.endpoints[id] = endpoint
	c.digest = c.digest.Plus(hash(id, endpoint))
}

func (c *client) remove(id string) {
	if before, present := c.endpoints[id]; present {
		delete(c.endpoints, id)
		c.digest = c.digest.Minus(hash(id, before))
	}
}

// hash serializes the endpoint again. All languages produce the same bytes for these messages, but protobuf does not promise
// it: that is why the endpoint feed sends bytes.
func hash(id string, endpoint *gateway.GatewayEndpoint) feed.Sum {
	bytes, err := proto.MarshalOptions{Deterministic: true}.Marshal(endpoint)
	if err != nil {
		log.Fatal("old-client: ", err) // a string that is not UTF-8; such a message could not have been received
	}
	return feed.Hash(id, bytes)
}

func (c *client) tell(event, detail string) {
	err := c.out.Encode(map[string]any{
		"event": event, "detail": detail, "endpoints": len(c.endpoints), "digest": c.digest.String(),
		"at": time.Now().UTC().Format(time.RFC3339Nano),
	})
	if err != nil {
		log.Fatal("old-client: ", err) // the reader of the output has gone
	}
}
