// Package revisions has only a test: Go's parsers of both revisions of the legacy contract read the bytes that a server sends
// for an endpoint correctly. testdata holds examples with their bytes, and the second revision's descriptors.
package revisions

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	gateway "pads-cdc/gen/proto"
)

// row is the row that a mapping's query returns for an endpoint.
type row struct {
	EndpointID          string   `json:"endpoint_id"`
	SecretKey           string   `json:"secret_key"`
	SecretKeyRequired   bool     `json:"secret_key_required"`
	AuthorizedUsers     []string `json:"authorized_users"`
	AccountID           string   `json:"account_id"`
	PlanType            string   `json:"plan_type"`
	ThroughputLimit     int32    `json:"throughput_limit"`
	CapacityLimit       int32    `json:"capacity_limit"`
	CapacityLimitPeriod string   `json:"capacity_limit_period"`
	Name                string   `json:"name"`
	UserID              string   `json:"user_id"`
	Email               string   `json:"email"`
	Environment         string   `json:"environment"`
}

func examples(t *testing.T) map[string]struct {
	Row   row
	Bytes string
} {
	t.Helper()
	text, err := os.ReadFile("testdata/payloads.json")
	if err != nil {
		t.Fatal(err)
	}
	var found struct {
		Payloads map[string]struct {
			Row   row
			Bytes string
		}
	}
	if err := json.Unmarshal(text, &found); err != nil || len(found.Payloads) == 0 {
		t.Fatal(len(found.Payloads), err)
	}
	return found.Payloads
}

func decoded(t *testing.T, text string) []byte {
	t.Helper()
	raw, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// secondRevision returns an empty endpoint of the second revision. Its messages have the same names as those of the first
// one, so they are not registered.
func secondRevision(t *testing.T) *dynamicpb.Message {
	t.Helper()
	raw, err := os.ReadFile("testdata/second_revision.binpb")
	if err != nil {
		t.Fatal(err)
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(raw, &set); err != nil {
		t.Fatal(err)
	}
	files, err := protodesc.NewFiles(&set)
	if err != nil {
		t.Fatal(err)
	}
	endpoint, err := files.FindDescriptorByName("proto.GatewayEndpoint")
	if err != nil {
		t.Fatal(err)
	}
	return dynamicpb.NewMessage(endpoint.(protoreflect.MessageDescriptor))
}

func TestTheFirstRevision(t *testing.T) {
	for name, example := range examples(t) {
		raw, want := decoded(t, example.Bytes), example.Row
		var endpoint gateway.GatewayEndpoint
		if err := proto.Unmarshal(raw, &endpoint); err != nil {
			t.Fatal(name, err)
		}
		metadata, limits := endpoint.Metadata, endpoint.RateLimiting
		got := row{
			EndpointID: endpoint.EndpointId, AccountID: metadata.AccountId, PlanType: metadata.PlanType,
			ThroughputLimit: limits.ThroughputLimit, CapacityLimit: limits.CapacityLimit,
			Name: metadata.Name, UserID: metadata.UserId, Email: metadata.Email, Environment: metadata.Environment,
		}
		want.SecretKey, want.SecretKeyRequired, want.AuthorizedUsers, want.CapacityLimitPeriod = "", false, nil, ""
		if !same(got, want) {
			t.Errorf("%s: %+v in place of %+v", name, got, want)
		}
		if len(endpoint.ProtoReflect().GetUnknown()) != 0 {
			t.Errorf("%s: unknown fields", name)
		}
		again, err := proto.MarshalOptions{Deterministic: true}.Marshal(&endpoint)
		if err != nil || !bytes.Equal(again, raw) {
			t.Errorf("%s: serialized again it is %x in place of %x (%v)", name, again, raw, err)
		}
	}
}

func TestTheSecondRevision(t *testing.T) {
	for name, example := range examples(t) {
		endpoint, want := secondRevision(t), example.Row
		if err := proto.Unmarshal(decoded(t, example.Bytes), endpoint); err != nil {
			t.Fatal(name, err)
		}
		if !has(endpoint, "metadata") {
			t.Errorf("%s: no metadata", name)
		}
		metadata, auth := message(endpoint, "metadata"), message(endpoint, "auth")
		got := row{
			EndpointID: text(endpoint, "endpoint_id"), AccountID: text(metadata, "account_id"),
			PlanType: text(metadata, "plan_type"), Name: text(metadata, "name"), UserID: text(metadata, "user_id"),
			Email: text(metadata, "email"), Environment: text(metadata, "environment"),
			SecretKey: text(message(auth, "static_api_key"), "api_key"), SecretKeyRequired: has(auth, "static_api_key"),
		}
		if users := want.AuthorizedUsers; users != nil && (has(auth, "no_auth") || has(auth, "static_api_key")) {
			t.Errorf("%s: authorized users are not refused", name)
		}
		want.AuthorizedUsers, want.CapacityLimitPeriod, want.ThroughputLimit, want.CapacityLimit = nil, "", 0, 0
		if !same(got, want) {
			t.Errorf("%s: %+v in place of %+v", name, got, want)
		}
	}
}

func same(a, b row) bool {
	first, _ := json.Marshal(a)
	second, _ := json.Marshal(b)
	return bytes.Equal(first, second)
}

func field(of protoreflect.Message, name protoreflect.Name) protoreflect.FieldDescriptor {
	return of.Descriptor().Fields().ByName(name)
}

func text(of protoreflect.Message, name protoreflect.Name) string {
	return of.Get(field(of, name)).String()
}

func message(of protoreflect.Message, name protoreflect.Name) protoreflect.Message {
	return of.Get(field(of, name)).Message()
}

func has(of protoreflect.Message, name protoreflect.Name) bool {
	return of.Has(field(of, name))
}
