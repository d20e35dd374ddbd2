"""A client of the endpoint feed (``pads.cdc.v1``); see `EndpointFeed`."""

from pads_cdc_client.feed import EndpointFeed, FeedStoppedError
from pads_cdc_client.replica import Change, Replica

__all__ = ["Change", "EndpointFeed", "FeedStoppedError", "Replica"]
