"""An OTLP collector: takes spans, metrics and log records over gRPC, and writes them down.

Usage: collector.py ADDRESS. Writes one JSON object a line: {"listening": ADDRESS} first, then one for each span
({"span": ...}), for each metric of an export ({"metric": ...}) and for each log record ({"log": ...}). Messages and services
are those of the opentelemetry-proto package. It ends when it is killed.
"""

import json
import sys
import threading
from concurrent import futures

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

lock = threading.Lock()


def say(rows):
    with lock:
        sys.stdout.write("".join(json.dumps(row) + "\n" for row in rows))
        sys.stdout.flush()


def plain(value):
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def attributes(pairs):
    result = {}
    for pair in pairs:
        if pair.key in result:
            raise ValueError(f"attribute {pair.key} twice")
        result[pair.key] = plain(pair.value)
    return result


def describe(span):
    return {
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "kind": trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        "name": span.name,
        "start": span.start_time_unix_nano,
        "end": span.end_time_unix_nano,
        "status": trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        "attributes": attributes(span.attributes),
        "links": [
            {"trace": link.trace_id.hex(), "id": link.span_id.hex(), "attributes": attributes(link.attributes)}
            for link in span.links
        ],
    }


class Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request, context):
        rows = []
        for resource in request.resource_spans:
            shared = attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                rows += [{"span": describe(span), "resource": shared} for span in scope.spans]
        say(rows)
        return trace_service_pb2.ExportTraceServiceResponse()


class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def Export(self, request, context):
        rows = []
        for resource in request.resource_metrics:
            shared = attributes(resource.resource.attributes)
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points = getattr(metric, metric.WhichOneof("data")).data_points
                    count = sum(getattr(point, "count", 0) for point in points)
                    rows.append({"metric": metric.name, "unit": metric.unit, "count": count, "resource": shared})
        say(rows)
        return metrics_service_pb2.ExportMetricsServiceResponse()


class Logs(logs_service_pb2_grpc.LogsServiceServicer):
    def Export(self, request, context):
        rows = []
        for resource in request.resource_logs:
            for scope in resource.scope_logs:
                for record in scope.log_records:
                    log = {
                        "name": record.event_name,
                        "severity": record.severity_text,
                        "trace": record.trace_id.hex(),
                        "id": record.span_id.hex(),
                        "attributes": attributes(record.attributes),
                    }
                    rows.append({"log": log})
        say(rows)
        return logs_service_pb2.ExportLogsServiceResponse()


def main():
    address = sys.argv[1]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4), options=[("grpc.so_reuseport", 0)])
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(Logs(), server)
    server.add_insecure_port(address)
    server.start()
    say([{"listening": address}])
    server.wait_for_termination()


main()
