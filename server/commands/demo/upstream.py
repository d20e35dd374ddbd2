"""The upstream behind Envoy in the demo. It answers every request with the headers that it received.

``python -m server.commands.demo.upstream PORT`` runs it by itself.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class EchoUpstream:
    """An HTTP server on a port of 127.0.0.1 while its context lasts."""

    def __init__(self, port: int = 0) -> None:
        """Listen on ``port``; 0 takes any free port."""
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _Echo)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="upstream", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def join(self) -> None:
        """Wait until the server ends."""
        self._thread.join()


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        said = {"path": self.path, "headers": [[name.lower(), value] for name, value in self.headers.items()]}
        body = json.dumps(said).encode() + b"\n"
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 (the base class's name)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


if __name__ == "__main__":  # in deploy/compose.yaml
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with EchoUpstream(int(sys.argv[1])) as upstream:
        upstream.join()
