"""The two gRPC services for gateways. They only convert between gRPC and the domain."""
