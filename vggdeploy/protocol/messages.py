"""The protocol's messages, made from its compiled description.

They stand in a descriptor pool of their own: Triton's client brings messages of the same names, and one pool takes a name once.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"


def compiled() -> descriptor_pb2.FileDescriptorSet:
    """What protoc made of inference.proto."""
    data = resources.files(__package__).joinpath("inference.binpb").read_bytes()
    return descriptor_pb2.FileDescriptorSet.FromString(data)


def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in (*compiled().file, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        pool.AddSerializedFile(getattr(file, "serialized_pb", None) or file.SerializeToString())
    return pool


POOL = _pool()
METHODS = {method.name: method for method in POOL.FindServiceByName(SERVICE).methods}


@functools.cache
def message(name: str) -> Any:
    """The class of a message, by its name without the package."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"inference.{name}"))
