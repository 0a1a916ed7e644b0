"""Traces and the access log of real requests; a small OTLP receiver stands where a collector would."""

from __future__ import annotations

import asyncio
import json

import pytest

from dynamo.errors import ConfigError
from dynamo.frontend.access_log import AccessLog
from dynamo.runtime.http import HttpLimits, HttpServer
from dynamo.runtime.tracing import create_tracing, trace_context

trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

COMPLETIONS = "/v1/completions"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.fixture
async def collector(monkeypatch):
    """A server that keeps the spans that it is sent."""
    spans = []
    server = HttpServer(HttpLimits())

    def receive(exchange):
        request = trace_service.ExportTraceServiceRequest.FromString(exchange.body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                spans.extend(scope.spans)
        exchange.respond(200, b"", "application/x-protobuf")

    server.route("POST", "/v1/traces", receive)
    port = await server.listen("127.0.0.1", 0)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    yield spans
    await server.close()


async def test_one_trace_spans_frontend_router_and_worker(collector, make_deployment):
    deployment = await make_deployment({"backend": "echo"})
    await deployment.serves("echo")
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT}-01"}
    answer = await deployment.client.post(COMPLETIONS, json={"model": "echo", "prompt": "hi"}, headers=headers)
    assert answer.status_code == 200
    await deployment.until(lambda: len(collector) == 3)
    spans = {span.name: span for span in collector}
    assert set(spans) == {"completions", "route", "generate"}
    assert {span.trace_id.hex() for span in collector} == {TRACE_ID}
    assert spans["completions"].parent_span_id.hex() == PARENT
    assert spans["route"].parent_span_id == spans["completions"].span_id
    assert spans["generate"].parent_span_id == spans["route"].span_id
    attributes = {a.key: a.value.int_value for a in spans["completions"].attributes if a.value.HasField("int_value")}
    assert attributes["gen_ai.usage.output_tokens"] > 0


async def test_a_failed_request_is_a_failed_span(collector, make_deployment):
    deployment = await make_deployment({"backend": "echo", "argv": ["--fail-after", "1"]})
    await deployment.serves("echo")
    await deployment.client.post(COMPLETIONS, json={"model": "echo", "prompt": "one two three"})
    await deployment.until(lambda: len(collector) == 3)
    assert {span.name: span.status.message for span in collector} == {
        "completions": "engine_error",
        "route": "engine_error",
        "generate": "failed",
    }


async def test_without_a_collector_the_context_is_passed_on(make_deployment, monkeypatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    deployment = await make_deployment({"backend": "echo"})
    await deployment.serves("echo")
    seen = []
    engine = deployment.engines[0]
    generate = engine.generate

    def remember(request, context):
        seen.append(dict(context.trace))
        return generate(request, context)

    engine.generate = remember
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT}-01"}
    await deployment.client.post(COMPLETIONS, json={"model": "echo", "prompt": "hi"}, headers=headers)
    assert seen == [headers]


def test_tracing_off_makes_spans_that_pass_their_parent():
    tracing = create_tracing("x", {})
    span = tracing.span("a", {"traceparent": "t"}, {})
    span.event("e")
    span.set("k", 1)
    span.end("error")
    assert span.context == {"traceparent": "t"}
    assert trace_context({"traceparent": "t", "host": "h"}) == {"traceparent": "t"}
    tracing.close()


async def test_the_access_log_has_a_line_per_request(make_deployment, tmp_path):
    path = tmp_path / "access.jsonl"
    deployment = await make_deployment({"backend": "echo"}, access_log=str(path))
    await deployment.serves("echo")
    for _ in range(3):
        await deployment.client.post(COMPLETIONS, json={"model": "echo", "prompt": "hi"})
    await asyncio.to_thread(deployment.frontend._access_log.close)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["model"], line["status"], line["endpoint"]) for line in lines] == [("echo", 200, "completions")] * 3
    assert all(line["output_tokens"] > 0 and line["duration_seconds"] > 0 for line in lines)
    assert "hi" not in {value for line in lines for value in line.values()}


def test_an_access_log_that_cannot_be_opened_names_the_flag(tmp_path):
    with pytest.raises(ConfigError, match="access log") as caught:
        AccessLog(str(tmp_path / "no" / "such" / "directory.log"))
    assert "--access-log" in str(caught.value.hint)


def test_a_full_disk_costs_lines_not_requests():
    log = AccessLog("/dev/full")
    for number in range(100):
        log.write({"n": number})
    log.close()
    assert log.dropped > 0
