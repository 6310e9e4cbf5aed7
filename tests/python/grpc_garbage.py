"""Calls every method of a gateway with bytes that mean nothing, and expects a status each time.

Usage: grpc_garbage.py DISCOVERY HEALTH. Ends with 0 if every call got a status that blames the caller, or an answer; the last
line says how many calls there were.
"""

import collections
import random
import sys

import grpc

DISCOVERY = [
    "/portico.discovery.v1.DiscoveryService/Watch",
    "/portico.node.v1.NodeStatusService/ReportNodeStatus",
    "/portico.discovery.v1.DiscoveryService/Nothing",
    "/no.such.Service/Method",
    "//",
]
HEALTH = [
    "/portico.health.v1.NodeHealthService/GetNodeHealth",
    "/portico.health.v1.NodeHealthService/ListNodeHealth",
    "/portico.health.v1.NodeHealthService/WatchNodeHealth",
    "/portico.health.v1.NodeHealthService/GetServiceHealth",
    "/portico.health.v1.NodeHealthService/ListServiceHealth",
    "/portico.health.v1.NodeHealthService/WatchServiceHealth",
    "/portico.inspect.v1.InspectService/ListObjects",
    "/portico.inspect.v1.InspectService/WatchObjects",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/no.such.Service/Method",
]
# What a caller may be told. UNKNOWN, UNAVAILABLE or CANCELLED would mean that the server broke; DEADLINE_EXCEEDED is ours,
# and is a stream that the server keeps open because it could make sense of what it got.
FINE = {"OK", "INVALID_ARGUMENT", "INTERNAL", "UNIMPLEMENTED", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED",
        "OUT_OF_RANGE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED"}


def payloads(random):
    yield b""
    yield b"\xff" * 40
    yield b"\x0a\xff\xff\xff\xff\x0f"  # a string of 4 GiB
    yield b"\x0a\x04\xff\xfe\xfd\xfc"  # a string that is not UTF-8
    yield b"\x08" + b"\x80" * 20  # a number without end
    yield b"\x0b" * 200  # groups in groups
    yield b"\x0a\x80\x80\x04" + b"a" * 65536  # a name of 64 KiB
    yield b"\x0a" * 5_000_000  # larger than a message may be
    for _ in range(10):
        yield random.randbytes(random.randrange(1, 400))


def call(channel, method, payload):
    method = channel.stream_stream(method, request_serializer=bytes, response_deserializer=bytes)
    answers = method(iter([payload]), timeout=0.3)
    try:
        for _ in zip(range(5), answers):
            pass
        answers.cancel()
        return "OK", ""
    except grpc.RpcError as error:
        return error.code().name, error.details()


def main():
    seeded = random.Random(7)
    seen, wrong = collections.Counter(), []
    for address, methods in [(sys.argv[1], DISCOVERY), (sys.argv[2], HEALTH)]:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=20)
            for method in methods:
                for payload in payloads(seeded):
                    code, details = call(channel, method, payload)
                    seen[code] += 1
                    if code not in FINE:
                        wrong.append(f"{method} {payload[:20]!r}: {code} {details}")
    print(f"{sum(seen.values())} calls: {dict(seen)}")
    if wrong:
        sys.exit("\n".join(wrong))


main()
