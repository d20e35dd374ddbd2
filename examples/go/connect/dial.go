//go:build !old_grpc

package connect

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

var plaintext = grpc.WithTransportCredentials(insecure.NewCredentials())

func dial(target string, with []grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient(target, with...)
}
