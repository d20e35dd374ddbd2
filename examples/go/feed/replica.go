// Package feed is the reference client of pads.cdc.v1.EndpointFeedService: it keeps an exact copy of every GatewayEndpoint.
//
// This file has the rules of the protocol, without I/O. client.go connects and reconnects.
package feed

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync"
	"time"

	"golang.org/x/crypto/blake2b"
	"google.golang.org/protobuf/proto"

	cdcv1 "pads-cdc/gen/pads/cdc/v1"
	gateway "pads-cdc/gen/proto"
)

// Sum is a number modulo 2^128: the hash of an endpoint, or the sum of all hashes, which is the digest of a map.
type Sum struct{ high, low uint64 }

// Plus returns a + b.
func (a Sum) Plus(b Sum) Sum {
	low, carry := bits.Add64(a.low, b.low, 0)
	return Sum{a.high + b.high + carry, low}
}

// Minus returns a - b.
func (a Sum) Minus(b Sum) Sum {
	low, borrow := bits.Sub64(a.low, b.low, 0)
	return Sum{a.high - b.high - borrow, low}
}

// String is the digest in hexadecimal.
func (a Sum) String() string { return fmt.Sprintf("%016x%016x", a.high, a.low) }

// Hash returns what an endpoint adds to the digest. Pass the bytes as received: serializing again may change them.
func Hash(id string, endpoint []byte) Sum {
	hash, _ := blake2b.New(16, nil) // fails only for other sizes
	hash.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(id))), id...))
	hash.Write(endpoint)
	return sumOf(hash.Sum(nil))
}

func sumOf(digest []byte) Sum {
	if len(digest) != 16 {
		return Sum{}
	}
	return Sum{binary.BigEndian.Uint64(digest), binary.BigEndian.Uint64(digest[8:])}
}

type held struct {
	endpoint *gateway.GatewayEndpoint
	hash     Sum
}

// Replica is the map. One goroutine applies messages while any number of others call Get. Get never waits for the network.
type Replica struct {
	mu         sync.RWMutex
	endpoints  map[string]held
	digest     Sum
	token      []byte              // belongs to the map: where to resume, and how new it is
	unseen     map[string]struct{} // after a reset: the ids that the snapshot has not brought yet
	reported   bool                // a mismatch was reported, and the server has not answered yet
	mismatches int                 // since the last digest that was equal
	complete   bool                // the map has been equal to the server's at least once
	exactAt    time.Time           // the moment as of which the map was last proved to be the database's
}

// NewReplica returns an empty map.
func NewReplica() *Replica { return &Replica{endpoints: map[string]held{}} }

// Get returns the endpoint with this id, which must not be changed, or nil.
func (r *Replica) Get(id string) *gateway.GatewayEndpoint {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.endpoints[id].endpoint
}

// Staleness returns the time since the map last equalled the database. It normally stays below the server's progress
// interval, and grows while the server or its database is unreachable, or changes come without a pause: serve the map all
// the same. It returns false until the map has been complete once; until then, a missing id proves nothing.
func (r *Replica) Staleness() (time.Duration, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return time.Since(r.exactAt), r.complete // for the zero time: the longest possible duration
}

// State returns the number of endpoints and their digest.
func (r *Replica) State() (int, Sum) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.endpoints), r.digest
}

// opening returns the first message of a stream.
func (r *Replica) opening(clientID string) *cdcv1.WatchRequest {
	r.reported, r.mismatches, r.unseen = false, 0, nil
	open := &cdcv1.Open{ClientId: clientID, ResumeToken: r.token}
	return &cdcv1.WatchRequest{Request: &cdcv1.WatchRequest_Open{Open: open}}
}

// apply applies a message and returns the answer to it, or nil. Readers see all of a message or nothing of it.
func (r *Replica) apply(message *cdcv1.WatchResponse) (*cdcv1.Acknowledge, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch response := message.Response.(type) {
	case *cdcv1.WatchResponse_Opened:
		r.token, r.reported, r.unseen = response.Opened.Token, false, nil
		if response.Opened.GetReset_() != nil {
			r.unseen = make(map[string]struct{}, len(r.endpoints))
			for id := range r.endpoints {
				r.unseen[id] = struct{}{}
			}
		}
	case *cdcv1.WatchResponse_Batch:
		for _, change := range response.Batch.Changes {
			delete(r.unseen, change.EndpointId)
			if err := r.put(change); err != nil {
				return nil, err
			}
		}
		r.token = response.Batch.Token
		if response.Batch.SnapshotEnd {
			for id := range r.unseen { // deleted while this client was away
				r.remove(id)
			}
			r.unseen = nil
		}
		return r.check(response.Batch.Checkpoint), nil
	case *cdcv1.WatchResponse_Progress:
		r.token = response.Progress.Token
		return r.check(response.Progress.Checkpoint), nil
	}
	return nil, nil
}

func (r *Replica) put(change *cdcv1.Change) error {
	id := change.EndpointId
	r.remove(id)
	outcome, present := change.Outcome.(*cdcv1.Change_Endpoint)
	if !present {
		return nil
	}
	endpoint := &gateway.GatewayEndpoint{}
	if err := proto.Unmarshal(outcome.Endpoint, endpoint); err != nil {
		return fmt.Errorf("endpoint %q: %w", id, err)
	}
	hash := Hash(id, outcome.Endpoint)
	r.endpoints[id], r.digest = held{endpoint, hash}, r.digest.Plus(hash)
	return nil
}

func (r *Replica) remove(id string) {
	if before, present := r.endpoints[id]; present {
		delete(r.endpoints, id)
		r.digest = r.digest.Minus(before.hash)
	}
}

// check compares the map with the server's. After a difference is reported, the server sends a new snapshot.
func (r *Replica) check(checkpoint *cdcv1.Checkpoint) *cdcv1.Acknowledge {
	if checkpoint == nil || r.reported {
		return nil
	}
	if uint64(len(r.endpoints)) != checkpoint.Count || r.digest != sumOf(checkpoint.Digest) {
		r.reported = true
		r.mismatches++
		return &cdcv1.Acknowledge{Token: r.token, DigestMismatch: true}
	}
	r.mismatches, r.complete = 0, true
	if checkpoint.Unsettled { // some endpoints may be newer than others, so this proves nothing
		return &cdcv1.Acknowledge{Token: r.token}
	}
	r.exactAt = time.Now().Add(-checkpoint.Staleness.AsDuration())
	return &cdcv1.Acknowledge{Token: r.token}
}
