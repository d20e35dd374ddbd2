package feed

import (
	"encoding/binary"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	cdcv1 "pads-cdc/gen/pads/cdc/v1"
	gateway "pads-cdc/gen/proto"
)

// server makes the messages of a server that has a map of its own.
type server map[string][]byte

func (s server) change(t *testing.T, id, key string) *cdcv1.Change {
	t.Helper()
	if key == "" {
		delete(s, id)
		return &cdcv1.Change{EndpointId: id, Outcome: &cdcv1.Change_Deleted{Deleted: true}}
	}
	auth := &gateway.Auth{AuthType: &gateway.Auth_StaticApiKey{StaticApiKey: &gateway.StaticAPIKey{ApiKey: key}}}
	endpoint, err := proto.Marshal(&gateway.GatewayEndpoint{EndpointId: id, Auth: auth})
	if err != nil {
		t.Fatal(err)
	}
	s[id] = endpoint
	return &cdcv1.Change{EndpointId: id, Outcome: &cdcv1.Change_Endpoint{Endpoint: endpoint}}
}

func (s server) batch(token string, end bool, changes ...*cdcv1.Change) *cdcv1.WatchResponse {
	sum := Sum{}
	for id, endpoint := range s {
		sum = sum.Plus(Hash(id, endpoint))
	}
	return &cdcv1.WatchResponse{Response: &cdcv1.WatchResponse_Batch{Batch: &cdcv1.Batch{
		Changes: changes, Token: []byte(token), SnapshotEnd: end, Checkpoint: &cdcv1.Checkpoint{
			Count: uint64(len(s)), Digest: sum.bytes(), Staleness: durationpb.New(0),
		},
	}}}
}

func (a Sum) bytes() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, a.high), a.low)
}

func reset() *cdcv1.WatchResponse {
	opened := &cdcv1.Opened{Outcome: &cdcv1.Opened_Reset_{Reset_: &cdcv1.Reset{}}, Token: []byte("reset")}
	return &cdcv1.WatchResponse{Response: &cdcv1.WatchResponse_Opened{Opened: opened}}
}

// take applies a message, and fails unless the answer is as expected: "proof", "mismatch", or "" for none.
func take(t *testing.T, replica *Replica, message *cdcv1.WatchResponse, answer string) {
	t.Helper()
	acknowledge, err := replica.apply(message)
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	if acknowledge != nil {
		got = map[bool]string{false: "proof", true: "mismatch"}[acknowledge.DigestMismatch]
	}
	if got != answer {
		t.Fatalf("answered %q, not %q", got, answer)
	}
}

func TestSnapshotSweepsWhatItDidNotBring(t *testing.T) {
	replica, theirs := NewReplica(), server{}
	if _, known := replica.Staleness(); known {
		t.Fatal("an empty map counts as complete")
	}
	take(t, replica, reset(), "")
	take(t, replica, theirs.batch("1", true, theirs.change(t, "stays", "a"), theirs.change(t, "goes", "b")), "proof")
	delete(theirs, "goes")
	take(t, replica, reset(), "")
	if replica.Get("goes") == nil {
		t.Fatal("swept before the snapshot was complete")
	}
	take(t, replica, theirs.batch("2", true, theirs.change(t, "stays", "c")), "proof")
	if replica.Get("goes") != nil || replica.Get("stays").Auth.GetStaticApiKey().ApiKey != "c" {
		t.Fatal("the map is not the snapshot")
	}
	if string(replica.opening("me").GetOpen().ResumeToken) != "2" {
		t.Fatal("the token is not the newest")
	}
}

func TestDifferenceIsReportedOnceAndEndsWithASnapshot(t *testing.T) {
	replica, theirs := NewReplica(), server{}
	take(t, replica, reset(), "")
	take(t, replica, theirs.batch("1", true, theirs.change(t, "one", "a"), theirs.change(t, "two", "b")), "proof")
	theirs.change(t, "one", "changed, and nobody was told")
	take(t, replica, theirs.batch("2", false), "mismatch")
	take(t, replica, theirs.batch("3", false), "")
	take(t, replica, reset(), "")
	take(t, replica, theirs.batch("4", true, theirs.change(t, "one", "d"), theirs.change(t, "two", "b")), "proof")
}

func TestUnsettledCheckpointMakesTheMapCompleteAndIsNoProof(t *testing.T) {
	replica, theirs := NewReplica(), server{}
	take(t, replica, reset(), "")
	unsettled := theirs.batch("1", true, theirs.change(t, "one", "a"))
	unsettled.GetBatch().Checkpoint.Unsettled = true
	take(t, replica, unsettled, "proof")
	if staleness, complete := replica.Staleness(); !complete || staleness < time.Hour {
		t.Fatalf("complete %v, and stale by %v", complete, staleness)
	}
	take(t, replica, theirs.batch("2", false), "proof")
	if staleness, _ := replica.Staleness(); staleness > time.Minute {
		t.Fatalf("proved, and stale by %v", staleness)
	}
}

func TestWhatCannotBeReadIsNotKept(t *testing.T) {
	replica, theirs := NewReplica(), server{}
	take(t, replica, reset(), "")
	take(t, replica, theirs.batch("1", true, theirs.change(t, "one", "a")), "proof")
	broken := &cdcv1.Change{EndpointId: "one", Outcome: &cdcv1.Change_Endpoint{Endpoint: []byte{0xff}}}
	if _, err := replica.apply(theirs.batch("2", false, broken)); err == nil {
		t.Fatal("no error")
	}
	if replica.Get("one") != nil || string(replica.opening("me").GetOpen().ResumeToken) == "2" {
		t.Fatal("an old key is good though it was changed, or the change is taken as had")
	}
}
