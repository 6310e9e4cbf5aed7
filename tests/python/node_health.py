"""Watches the health of nodes as a load balancer would: with code generated from the .proto files, by grpcio.

Usage: node_health.py ADDRESS PROTO_DIR. Writes one JSON object a line: first what grpc.health.v1 says, then each event of
WatchNodeHealth. It ends when it is killed, or when the watch does.
"""

import importlib
import json
import sys
import tempfile

import grpc
import grpc_tools
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_tools import protoc

FILES = ["portico/health/v1/node_health_service.proto"]


def say(**fields):
    print(json.dumps(fields), flush=True)


def generate(proto_dir):
    """Compiles the files as their users do, and makes them importable."""
    out = tempfile.mkdtemp(prefix="portico-health-")
    well_known = f"{list(grpc_tools.__path__)[0]}/_proto"
    args = ["protoc", f"-I{proto_dir}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(args + FILES) != 0:
        sys.exit("protoc failed")
    sys.path.insert(0, out)


def describe(node, pb):
    health = node.health
    return {
        "node": node.name,
        "state": pb.HealthState.Name(health.state).removeprefix("HEALTH_STATE_"),
        "reason": health.reason,
        "message": health.message,
        "weight": node.weight,
        "since": health.state_since.ToNanoseconds() / 1e9,
        "observed": health.observe_time.ToNanoseconds() / 1e9,
        "expires": health.expire_time.ToNanoseconds() / 1e9,
        "addresses": [address.address for address in node.addresses],
    }


def main():
    address, proto_dir = sys.argv[1:]
    generate(proto_dir)
    pb = importlib.import_module("portico.health.v1.node_health_service_pb2")
    stubs = importlib.import_module("portico.health.v1.node_health_service_pb2_grpc")
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ["", "portico.health.v1.NodeHealthService"]:
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), wait_for_ready=True, timeout=20)
            say(service=service, serving=health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
        unknown = health.Watch(health_pb2.HealthCheckRequest(service="nobody"), timeout=20)
        status = next(unknown).status
        unknown.cancel()
        say(service="nobody", serving=health_pb2.HealthCheckResponse.ServingStatus.Name(status))
        nodes = stubs.NodeHealthServiceStub(channel)
        try:
            nodes.GetNodeHealth(pb.GetNodeHealthRequest(name="nodes/nobody"), timeout=20)
        except grpc.RpcError as error:
            say(missing=error.code().name, details=error.details())
        for message in nodes.WatchNodeHealth(pb.WatchNodeHealthRequest()):
            event = message.WhichOneof("event")
            if event == "updated":
                say(event=event, **describe(message.updated, pb))
            elif event == "removed":
                say(event=event, node=message.removed)
            elif event == "bookmark":
                say(event=event, complete=message.bookmark.initial_state_complete, token=message.bookmark.resume_token)
            else:
                say(event=event, reason=message.reset.reason)


main()
