// Package connect opens the connections of the clients: plaintext or TLS, with keepalive.
package connect

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// Options name the files for TLS and the token. Each may be empty.
type Options struct {
	CA    string // certificates to trust; if empty, plaintext
	Cert  string // client certificate, for mutual TLS
	Key   string // and its key
	Token string // the bearer token
}

// Flags defines the options as command-line flags.
func Flags() *Options {
	options := &Options{}
	flag.StringVar(&options.CA, "ca", "", "use TLS, and trust the certificates in this `file`")
	flag.StringVar(&options.Cert, "cert", "", "`file` with the client certificate, for mutual TLS")
	flag.StringVar(&options.Key, "key", "", "`file` with its key")
	flag.StringVar(&options.Token, "token", "", "`file` with the bearer token; it is read again for each call")
	return options
}

// To returns a connection. gRPC connects at the first call, and again when the connection breaks.
func To(target string, options *Options) (*grpc.ClientConn, error) {
	with := []grpc.DialOption{grpc.WithKeepaliveParams(keepalive.ClientParameters{
		// A server that vanished is noticed within half a minute. The server allows one ping in 10 s.
		Time: 20 * time.Second, Timeout: 10 * time.Second,
	})}
	if options.CA == "" {
		if options.Token != "" || options.Cert != "" {
			return nil, errors.New("a token or a certificate needs TLS: give -ca too")
		}
		return dial(target, append(with, plaintext))
	}
	secure, err := tlsConfig(options)
	if err != nil {
		return nil, err
	}
	with = append(with, grpc.WithTransportCredentials(credentials.NewTLS(secure)))
	if options.Token != "" {
		with = append(with, grpc.WithPerRPCCredentials(bearer(options.Token)))
	}
	return dial(target, with)
}

// Server returns a server that allows Envoy's keepalive pings; by default gRPC ends a connection after three of them.
func Server() *grpc.Server {
	return grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
		MinTime: 5 * time.Second, PermitWithoutStream: true,
	}))
}

// Listen listens on HOST:PORT, or on the socket of unix:PATH. It replaces a socket that a dead process has left.
func Listen(address string) (net.Listener, error) {
	if path := strings.TrimPrefix(address, "unix:"); path != address {
		if other, err := net.Dial("unix", path); err == nil {
			other.Close()
			return nil, fmt.Errorf("%s: something else listens there", path)
		} else if errors.Is(err, syscall.ECONNREFUSED) {
			os.Remove(path)
		}
		return net.Listen("unix", path)
	}
	return net.Listen("tcp", address)
}

// All returns a connection to each of the servers.
func All(targets []string, options *Options) (servers []grpc.ClientConnInterface, err error) {
	if len(targets) == 0 {
		return nil, errors.New("where is the server? For example: 127.0.0.1:10002")
	}
	for _, target := range targets {
		server, err := To(target, options)
		if err != nil {
			return nil, err
		}
		servers = append(servers, server)
	}
	return servers, nil
}

func tlsConfig(options *Options) (*tls.Config, error) {
	certificates, err := os.ReadFile(options.CA)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	if !config.RootCAs.AppendCertsFromPEM(certificates) {
		return nil, fmt.Errorf("%s: no certificate in it", options.CA)
	}
	if options.Cert != "" {
		// Read the files at each connection, because certificates are renewed.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			certificate, err := tls.LoadX509KeyPair(options.Cert, options.Key)
			return &certificate, err
		}
	}
	return config, nil
}

// bearer is the name of a file with a token.
type bearer string

func (file bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := os.ReadFile(string(file))
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(token))}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }
