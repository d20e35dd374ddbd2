"""An external authorization server for Envoy (ext_authz) that is a client of the endpoint feed.

`identity` decides which endpoint a request is for, `check` whether the request may pass, and `rate_limit`
whether the endpoint is over its limit. These three are pure. `answer` and `service` implement Envoy's
protocol, and `serve` runs it.
"""
