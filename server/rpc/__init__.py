"""The two gRPC services. Transports only convert."""
