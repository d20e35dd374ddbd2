// Command old-client speaks the old contract as deployed clients do: one fetch, then the stream, opened again 2 s after
// it ends, and never another fetch. It prints one JSON line an event; never a key.
//
//	old-client [-ca FILE [-token FILE] [-cert FILE -key FILE]] HOST:PORT
package main

import (
	"context"
	"encoding/json"
	"flag"
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

type client struct {
	server    gateway.GatewayEndpointsClient
	endpoints map[string]*gateway.GatewayEndpoint
	digest    feed.Sum // of the map, to be compared with others: this contract itself knows none
	out       *json.Encoder
}

func main() {
	options := connect.Flags()
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("old-client: where is the server? For example: old-client 127.0.0.1:10002")
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
	if err := c.fetch(ctx); err != nil {
		log.Fatal("old-client: ", err)
	}
	for ctx.Err() == nil {
		err := c.follow(ctx)
		c.tell("lost", err.Error())
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
	}
}

// fetch fills the map. gRPC's limit of 4 MiB a message stands, as it does in deployed clients.
func (c *client) fetch(ctx context.Context) error {
	response, err := c.server.FetchAuthDataSync(ctx, &gateway.AuthDataRequest{})
	if err != nil {
		return err
	}
	for id, endpoint := range response.Endpoints {
		c.put(id, endpoint)
	}
	c.tell("fetched", "")
	return nil
}

// follow returns when the stream ends, with what it ended with.
func (c *client) follow(ctx context.Context) error {
	stream, err := c.server.StreamAuthDataUpdates(ctx, &gateway.AuthDataUpdatesRequest{})
	if err != nil {
		return err
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

// hash serializes the endpoint again. That all languages make the same bytes of it is true of these messages, and not a
// promise of protobuf: the endpoint feed sends bytes for that reason.
func hash(id string, endpoint *gateway.GatewayEndpoint) feed.Sum {
	bytes, err := proto.MarshalOptions{Deterministic: true}.Marshal(endpoint)
	if err != nil {
		log.Fatal("old-client: ", err) // a string that is not UTF-8, which could not have been received
	}
	return feed.Hash(id, bytes)
}

func (c *client) tell(event, detail string) {
	err := c.out.Encode(map[string]any{
		"event": event, "detail": detail, "endpoints": len(c.endpoints), "digest": c.digest.String(),
	})
	if err != nil {
		log.Fatal("old-client: ", err) // nobody reads it any more
	}
}
