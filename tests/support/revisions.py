"""The message classes of the second revision of the legacy contract.

They are made from its .proto file in a descriptor pool of their own, because the messages have the same names
as those of the first revision.
"""

from __future__ import annotations

import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc  # type: ignore[import-untyped]

from tests.support import ROOT

SECOND_REVISION: Final = ROOT / "tests/fixtures/gateway_endpoint_second_revision.proto"


@cache
def second_revision_descriptors() -> bytes:
    """Compile the second revision with protoc. Returns a serialized ``FileDescriptorSet``."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        arguments = [f"--descriptor_set_out={out}", f"-I{SECOND_REVISION.parent}", str(SECOND_REVISION)]
        code = protoc.main(["protoc", f"-I{files('grpc_tools') / '_proto'}", *arguments])
        assert code == 0, code
        return out.read_bytes()


@cache
def second_revision() -> Any:
    """Return a namespace with the second revision's classes as attributes."""
    pool = descriptor_pool.DescriptorPool()
    for file in FileDescriptorSet.FromString(second_revision_descriptors()).file:
        pool.Add(file)
    names = pool.FindFileByName(SECOND_REVISION.name).message_types_by_name
    return SimpleNamespace(
        **{
            name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"proto.{name}"))
            for name in names
        }
    )
