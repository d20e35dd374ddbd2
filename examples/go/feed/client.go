package feed

import (
	"context"
	"errors"
	"math"
	"math/rand"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	cdcv1 "pads-cdc/gen/pads/cdc/v1"
)

const (
	firstWord     = 45 * time.Second // a server without a complete map answers within 30 s
	firstRetry    = 200 * time.Millisecond
	longestRetry  = 30 * time.Second
	operatorRetry = time.Minute // an operator has to change something first
)

// Client follows one of the servers at a time, and keeps the map in Replica.
type Client struct {
	ID      string // shown on the server's status page, such as this host's name
	Servers []grpc.ClientConnInterface
	Replica *Replica
	Observe func(event string, details map[string]any) // called in Run's goroutine
}

// Run returns when the context ends, or when the server reports that this client violates the protocol.
func (c *Client) Run(ctx context.Context) error {
	random := rand.New(rand.NewSource(time.Now().UnixNano()))
	wait := firstRetry
	for attempt := 0; ; attempt++ {
		proved, err := c.watch(ctx, c.Servers[attempt%len(c.Servers)])
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if proved {
			wait = firstRetry
		}
		pause := wait
		switch status.Code(err) {
		case codes.InvalidArgument:
			return err
		case codes.Unauthenticated, codes.PermissionDenied, codes.ResourceExhausted, codes.Unimplemented:
			pause = operatorRetry
		}
		if wait *= 2; wait > longestRetry {
			wait = longestRetry
		}
		// Jitter, so that a thousand gateways do not reconnect at the same moment.
		pause = pause/2 + time.Duration(random.Int63n(int64(pause/2)))
		c.Observe("lost", map[string]any{"why": err.Error(), "retry_seconds": pause.Seconds()})
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// watch follows one stream to its end, and reports whether a digest has proved the map.
func (c *Client) watch(ctx context.Context, server grpc.ClientConnInterface) (proved bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	patience := firstWord
	silence := time.AfterFunc(patience, cancel) // for a server that is silent on an open connection
	defer silence.Stop()

	// An endpoint may be larger than gRPC's 4 MiB.
	stream, err := cdcv1.NewEndpointFeedServiceClient(server).Watch(ctx, grpc.MaxCallRecvMsgSize(math.MaxInt32))
	if err != nil {
		return false, err
	}
	_ = stream.Send(c.Replica.opening(c.ID)) // if Send fails, the stream has ended; Recv returns the reason
	for {
		message, err := stream.Recv()
		if err != nil {
			return proved, err
		}
		if opened := message.GetOpened(); opened != nil {
			patience = 3 * opened.ProgressInterval.AsDuration()
			c.Observe("opened", map[string]any{
				"resumed": opened.GetResumed() != nil, "reason": opened.GetReset_().GetReason().String(),
			})
		}
		silence.Reset(patience)
		acknowledge, err := c.Replica.apply(message)
		if err != nil {
			return proved, err
		}
		if acknowledge == nil {
			continue
		}
		_ = stream.Send(&cdcv1.WatchRequest{Request: &cdcv1.WatchRequest_Acknowledge{Acknowledge: acknowledge}})
		count, digest := c.Replica.State()
		state := map[string]any{"endpoints": count, "digest": digest.String()}
		switch {
		case acknowledge.DigestMismatch:
			c.Observe("mismatch", state)
		case checkpointOf(message).Unsettled:
			c.Observe("unsettled", state)
		default:
			proved = true
			c.Observe("proved", state)
		}
		if c.Replica.mismatches > 1 {
			return proved, errors.New("the map differs from the server's after a whole snapshot")
		}
	}
}

func checkpointOf(message *cdcv1.WatchResponse) *cdcv1.Checkpoint {
	if batch := message.GetBatch(); batch != nil {
		return batch.Checkpoint
	}
	return message.GetProgress().GetCheckpoint()
}
