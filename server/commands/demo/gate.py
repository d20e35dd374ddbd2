"""The gate of `pads-cdc demo --envoy`: Envoy, the authorizer behind it, an upstream, and callers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.commands.demo.callers import Callers
from server.commands.demo.envoy_process import EnvoyProcess
from server.commands.demo.server_process import AuthorizerProcess
from server.commands.demo.upstream import EchoUpstream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import ExitStack
    from pathlib import Path

    from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint


@dataclass(frozen=True)
class EnvoyStack:
    """The running processes of the Envoy part."""

    authorizer: AuthorizerProcess
    envoy: EnvoyProcess
    callers: Callers

    @property
    def address(self) -> str:
        """The URL for requests."""
        return f"http://127.0.0.1:{self.envoy.port}"

    def check(self) -> None:
        """Raise PadsCdcError if one of the processes has ended."""
        self.authorizer.check()
        self.envoy.check()


def put_up(
    ending: ExitStack,
    folder: Path,
    feed: str,
    endpoints: Mapping[str, GatewayEndpoint],
    wait: Callable[[Callable[[], bool], str], None],
) -> EnvoyStack:
    """Start upstream, authorizer, Envoy and callers for the server at ``feed``. ``wait`` waits for a
    condition.

    Raises:
        PadsCdcError: one of them could not be started.

    """
    authorizer = ending.enter_context(AuthorizerProcess(feed, folder))
    wait(authorizer.serving, "the authorizer serves")
    wait(authorizer.ready, "the authorizer holds the map")
    upstream = ending.enter_context(EchoUpstream())
    port = authorizer.target.rpartition(":")[2]
    address = f"socket_address: {{address: 127.0.0.1, port_value: {port}}}"
    envoy = ending.enter_context(EnvoyProcess(folder, authorizer=address, upstream=upstream.port))
    wait(envoy.ready, "Envoy takes requests")
    callers = ending.enter_context(Callers(envoy.port, endpoints))
    return EnvoyStack(authorizer, envoy, callers)
