//go:build old_grpc

package connect

import "google.golang.org/grpc"

// As it was called before grpc-go 1.63, which Debian 12's 1.33 is. Build with `-tags old_grpc`.
var plaintext = grpc.WithInsecure()

func dial(target string, with []grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.Dial(target, with...)
}
