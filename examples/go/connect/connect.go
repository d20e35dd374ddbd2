// Package connect opens connections as both clients need them: plaintext or TLS, with keepalive.
package connect

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// Options say how a server is spoken to.
type Options struct {
	CA    string // file of certificates to trust; empty: plaintext
	Token string // file that holds the bearer token; empty: none
}

// Flags are the options as command line flags.
func Flags() *Options {
	options := &Options{}
	flag.StringVar(&options.CA, "ca", "", "speak TLS, and trust the certificates in this file")
	flag.StringVar(&options.Token, "token", "", "show the bearer token in this file, which is read again for each call")
	return options
}

// To returns a connection, which is made at the first call and made again when it breaks.
func To(target string, options *Options) (*grpc.ClientConn, error) {
	with := []grpc.DialOption{grpc.WithKeepaliveParams(keepalive.ClientParameters{
		// A server that is gone without a word is noticed within half a minute; 10 s between pings is the least it takes.
		Time: 20 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: false,
	})}
	if options.CA == "" {
		if options.Token != "" {
			return nil, errors.New("a bearer token never travels in plaintext: say -ca too")
		}
		return dial(target, append(with, plaintext))
	}
	certificates, err := os.ReadFile(options.CA)
	if err != nil {
		return nil, err
	}
	trusted := x509.NewCertPool()
	if !trusted.AppendCertsFromPEM(certificates) {
		return nil, fmt.Errorf("%s: no certificate in it", options.CA)
	}
	secure := &tls.Config{RootCAs: trusted, MinVersion: tls.VersionTLS12}
	with = append(with, grpc.WithTransportCredentials(credentials.NewTLS(secure)))
	if options.Token != "" {
		with = append(with, grpc.WithPerRPCCredentials(bearer(options.Token)))
	}
	return dial(target, with)
}

// bearer is the file that a token is in.
type bearer string

func (file bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := os.ReadFile(string(file))
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(token))}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }
