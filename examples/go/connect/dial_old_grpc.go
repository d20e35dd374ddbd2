//go:build old_grpc

package connect

import "google.golang.org/grpc"

// The names of grpc-go before 1.63; Debian 12 has 1.33. Build with `-tags old_grpc`.
var plaintext = grpc.WithInsecure()

func dial(target string, with []grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.Dial(target, with...)
}
