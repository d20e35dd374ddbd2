"""An external authorization server for Envoy (ext_authz) that stands on the endpoint feed.

`identity` says which endpoint a request means, `check` whether the request may pass, `rate_limit` whether it
comes too often; these are pure. `answer` and `service` speak Envoy's protocol, `serve` runs it.
"""
