//go:build !old_grpc

// Command ext-authz is an external authorization server for Envoy that uses the endpoint feed, as `pads-cdc authorize` does.
//
//	ext-authz [-listen ADDRESS] [-subject-header NAME] [-ca FILE [-token FILE] [-cert FILE -key FILE]] FEED...
package main

import (
	"context"
	"crypto/subtle"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	types "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/structpb"

	"pads-cdc/connect"
	"pads-cdc/feed"
	gateway "pads-cdc/gen/proto"
)

type server struct {
	auth.UnimplementedAuthorizationServer
	replica                       *feed.Replica
	idHeader, prefix, subjectName string
	maxStaleness                  time.Duration
}

var scheme = regexp.MustCompile(`^(?i:bearer )`)
var unsendable = regexp.MustCompile(`\p{Cc}|^\p{Z}|\p{Z}$`) // the upstream would read another value

// Check answers one request of Envoy. It never waits: the map is in memory.
func (s *server) Check(_ context.Context, request *auth.CheckRequest) (*auth.CheckResponse, error) {
	if !s.ready() {
		return refuse(503, "authorization is not available")
	}
	http := request.GetAttributes().GetRequest().GetHttp()
	id, ok := identify(http.GetPath(), values(http, s.idHeader), s.prefix)
	if !ok {
		return refuse(400, "the request does not name one endpoint")
	}
	endpoint := s.replica.Get(id)
	switch {
	case endpoint == nil:
		return refuse(404, "endpoint not found")
	case !authorized(endpoint.Auth, values(http, "authorization"), values(http, s.subjectName)):
		return refuse(401, "unauthorized")
	case unsendable.MatchString(endpoint.GetMetadata().GetAccountId()):
		return refuse(503, "authorization is not available")
	}
	return allow(id, endpoint), nil
}

func (s *server) ready() bool {
	staleness, complete := s.replica.Staleness()
	return complete && (s.maxStaleness == 0 || staleness <= s.maxStaleness)
}

// values returns every value of a header, from the field of headers that Envoy has filled.
func values(http *auth.AttributeContext_HttpRequest, name string) (found []string) {
	for key, value := range http.GetHeaders() {
		if name != "" && strings.EqualFold(key, name) {
			found = append(found, value)
		}
	}
	for _, header := range http.GetHeaderMap().GetHeaders() {
		if name != "" && strings.EqualFold(header.Key, name) {
			found = append(found, header.Value+string(header.RawValue)) // one of them is empty
		}
	}
	return found
}

// authorized reports whether a request may use its endpoint. A repeated header counts as none.
func authorized(asked *gateway.Auth, authorization, subject []string) bool {
	switch kind := asked.GetAuthType().(type) {
	case *gateway.Auth_NoAuth:
		return true
	case *gateway.Auth_StaticApiKey:
		if key := []byte(kind.StaticApiKey.GetApiKey()); len(key) > 0 && len(authorization) == 1 {
			bare := subtle.ConstantTimeCompare([]byte(authorization[0]), key)
			return bare|subtle.ConstantTimeCompare(scheme.ReplaceAll([]byte(authorization[0]), nil), key) == 1
		}
	case *gateway.Auth_Jwt:
		if len(subject) == 1 && subject[0] != "" {
			return kind.Jwt.AuthorizedUsers[subject[0]] != nil
		}
	}
	return false
}

func allow(id string, endpoint *gateway.GatewayEndpoint) *auth.CheckResponse {
	limit, account := endpoint.GetRateLimiting().GetThroughputLimit(), endpoint.GetMetadata().GetAccountId()
	described := map[string]any{"outcome": "allowed", "endpoint_id": id, "account_id": account, "throughput_limit": limit,
		"plan_type": endpoint.GetMetadata().GetPlanType(), "capacity_limit": endpoint.GetRateLimiting().GetCapacityLimit()}
	limited, throughput := "", ""
	if limit > 0 {
		limited, throughput = id, strconv.Itoa(int(limit))
		described["rate_limit"] = map[string]any{"requests_per_unit": limit, "unit": "SECOND"}
	}
	ok := &auth.OkHttpResponse{HeadersToRemove: []string{"authorization"}}
	for _, header := range [][2]string{{"Portal-Application-ID", id}, {"Portal-Account-ID", account},
		{"Rl-Endpoint-Id", limited}, {"Rl-Throughput", throughput}} {
		if header[1] == "" { // the client's own header must not pass
			ok.HeadersToRemove = append(ok.HeadersToRemove, header[0])
		} else {
			ok.Headers = append(ok.Headers, set(header[0], header[1]))
		}
	}
	metadata, _ := structpb.NewStruct(described)
	return &auth.CheckResponse{DynamicMetadata: metadata, HttpResponse: &auth.CheckResponse_OkResponse{OkResponse: ok}}
}

func refuse(status int32, message string) (*auth.CheckResponse, error) {
	denied := &auth.DeniedHttpResponse{Status: &types.HttpStatus{Code: types.StatusCode(status)},
		Headers: []*core.HeaderValueOption{set("content-type", "application/json")},
		Body:    fmt.Sprintf(`{"code": %d, "message": %q}`, status, message)}
	return &auth.CheckResponse{Status: &rpc.Status{Code: 7}, HttpResponse: &auth.CheckResponse_DeniedResponse{DeniedResponse: denied}}, nil
}

func set(name, value string) *core.HeaderValueOption {
	return &core.HeaderValueOption{Header: &core.HeaderValue{Key: name, Value: value},
		AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD}
}

func main() {
	s := &server{replica: feed.NewReplica()}
	listen := flag.String("listen", "127.0.0.1:10001", "`address` to answer Envoy on: HOST:PORT, or unix:PATH")
	flag.StringVar(&s.idHeader, "id-header", "Portal-Application-ID", "header that names the endpoint; empty: none does")
	flag.StringVar(&s.prefix, "id-path-prefix", "/v1/", "the path segment behind it names the endpoint; empty: none does")
	flag.StringVar(&s.subjectName, "subject-header", "", "header in which Envoy puts a verified token's subject")
	flag.DurationVar(&s.maxStaleness, "max-staleness", 0, "staleness beyond which everything is refused; 0: never")
	options := connect.Flags()
	flag.Parse()
	servers, err := connect.All(flag.Args(), options)
	exitOn(err)
	listener, err := connect.Listen(*listen)
	exitOn(err)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	client := feed.Client{ID: "ext-authz", Servers: servers, Replica: s.replica, Observe: func(event string, why map[string]any) {
		if event == "lost" || event == "mismatch" {
			log.Print("ext-authz: ", event, " ", why)
		}
	}}
	go func() { log.Print("ext-authz: the feed has ended: ", client.Run(ctx)) }()
	grpcServer, status := connect.Server(), health.NewServer()
	auth.RegisterAuthorizationServer(grpcServer, s)
	healthpb.RegisterHealthServer(grpcServer, status)
	go func() { exitOn(grpcServer.Serve(listener)) }()
	states := map[bool]healthpb.HealthCheckResponse_ServingStatus{true: 1, false: 2} // SERVING, NOT_SERVING
	for ctx.Err() == nil {
		status.SetServingStatus("", states[s.ready()])
		time.Sleep(200 * time.Millisecond)
	}
	status.Shutdown()
	time.Sleep(3 * time.Second)                  // answer checks until Envoy's health checks have noticed
	time.AfterFunc(time.Second, grpcServer.Stop) // GracefulStop would wait forever for a stream that watches health
	grpcServer.GracefulStop()
}

func exitOn(err error) {
	if err != nil {
		log.Fatal("ext-authz: ", err)
	}
}
