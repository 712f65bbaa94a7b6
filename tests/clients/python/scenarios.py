"""The scenarios, in the order of ../README.md.

In: a client. Out: what was seen, or an AssertionError with the first expectation that failed.
"""

import queue
from collections import Counter

from grpc import StatusCode

from echo_pb2 import EchoRequest
from expect import (
    UNICODE_MESSAGE,
    carries,
    connected_peers,
    counts,
    details,
    ended,
    failed_with,
    failure,
    metadata_set,
    payload,
    pod_is,
    same,
    split,
    values,
    visible,
)

MIB = 1 << 20


def call_unary(client, request, **options):
    """A unary call, with what every good response owes."""
    message, call = client.echo.Unary.with_call(request, **options)
    pod_is(call.initial_metadata(), message)
    ended(call)
    return message, call


def works_on(client):
    """After a cancelled or expired call the channel takes the next ones."""
    for _ in range(3):
        call_unary(client, EchoRequest())


class Bidi:
    """A bidirectional stream written message by message."""

    def __init__(self, client, **options):
        self.outgoing = queue.SimpleQueue()
        self.call = client.echo.BidiStream(iter(self.outgoing.get, None), **options)

    def send(self, **fields):
        self.outgoing.put(EchoRequest(**fields))

    def half_close(self):
        self.outgoing.put(None)

    def answered(self, want, messages, size):
        message = next(self.call)
        same("payload", message.payload, want)
        counts(message, messages, size)
        pod_is(self.call.initial_metadata(), message)

    def ends_well(self):
        same("after the half-close", list(self.call), [])
        ended(self.call)


def unary(client, facts):
    for sent in payload(6, 1), b"":
        message, call = call_unary(client, EchoRequest(payload=sent))
        same("payload", message.payload, sent)
        counts(message, 1, len(sent))
        same("deadline_ms present", message.HasField("deadline_ms"), False)
        facts["pod"] = message.pod
        facts["endpoint"] = " ".join(values(call.initial_metadata(), "x-sluice-endpoint"))
    message, _ = call_unary(client, EchoRequest(payload=payload(6, 1), response_size=777))
    same("payload's size", len(message.payload), 777)
    return "3 calls"


def unary_spread(client, facts):
    pods, endpoints = Counter(), Counter()
    for _ in range(50):
        message, call = call_unary(client, EchoRequest())
        pods[message.pod] += 1
        endpoints.update(values(call.initial_metadata(), "x-sluice-endpoint"))
    facts.update(pods=pods, endpoints=endpoints)
    return "50 calls"


def client_stream(client, _):
    requests = [EchoRequest(payload=payload(10 * i, i)) for i in range(20)]
    size = sum(len(r.payload) for r in requests)
    message, call = client.echo.ClientStream.with_call(iter(requests))
    counts(message, 20, size)
    pod_is(call.initial_metadata(), message)
    ended(call)
    return f"20 messages, {size} bytes"


def server_stream(client, _):
    call = client.echo.ServerStream(EchoRequest(payload=payload(7, 2), response_count=20, response_size=100))
    answers = 0
    for message in call:
        same("payload's size", len(message.payload), 100)
        counts(message, 1, 7)
        pod_is(call.initial_metadata(), message)
        answers += 1
    same("answers", answers, 20)
    ended(call)
    return "20 answers"


def bidi(client, _):
    stream = Bidi(client)
    for i in range(20):
        stream.send(payload=payload(10, i))
        stream.answered(payload(10, i), i + 1, 10 * (i + 1))
    stream.half_close()
    stream.ends_well()
    stream = Bidi(client)
    for i in range(20):
        stream.send(payload=payload(10, i))
    stream.half_close()
    for i in range(20):
        stream.answered(payload(10, i), i + 1, 10 * (i + 1))
    stream.ends_well()
    return "20 + 20 messages"


def metadata(client, facts):
    sent = metadata_set("x-echo-") + metadata_set("x-echo-trailer-")
    _, call = call_unary(client, EchoRequest(), metadata=sent)
    facts["headers"], facts["trailers"] = visible(call.initial_metadata()), visible(call.trailing_metadata())
    carries("header", call.initial_metadata(), "x-echo-")
    carries("trailer", call.trailing_metadata(), "x-echo-trailer-")
    stream = Bidi(client, metadata=sent)
    stream.send()
    stream.answered(b"", 1, 0)
    stream.half_close()
    stream.ends_well()
    carries("header", stream.call.initial_metadata(), "x-echo-")
    carries("trailer", stream.call.trailing_metadata(), "x-echo-trailer-")
    return "unary and bidi"


def deadline(client, _):
    message, _ = call_unary(client, EchoRequest(), timeout=60)
    if not 50_000 <= message.deadline_ms <= 61_000:
        raise AssertionError(f"deadline_ms: got {message.deadline_ms}, want about 60000")
    slow = EchoRequest(delay_ms=5000, response_count=2)
    error = failure(lambda: client.echo.Unary(slow, timeout=0.3))
    same("status", error.code(), StatusCode.DEADLINE_EXCEEDED)
    error = failure(lambda: next(client.echo.ServerStream(slow, timeout=0.3)))
    same("status", error.code(), StatusCode.DEADLINE_EXCEEDED)
    works_on(client)
    return "60 s seen; DEADLINE_EXCEEDED twice"


def cancel(client, _):
    slow, flood = dict(delay_ms=20), dict(response_size=1000)
    for kind in slow, flood:
        call = client.echo.ServerStream(EchoRequest(response_count=100_000, **kind))
        for _ in range(3):
            next(call)
        call.cancel()
        error = failure(lambda: list(call))
        same("status", error.code(), StatusCode.CANCELLED)
        works_on(client)
    stream = Bidi(client)
    for i in range(3):
        stream.send()
        stream.answered(b"", i + 1, 0)
    stream.call.cancel()
    error = failure(lambda: next(stream.call))
    stream.half_close()  # ends the thread that reads the queue
    same("status", error.code(), StatusCode.CANCELLED)
    works_on(client)
    return "CANCELLED three times"


def error_details(client, facts):
    codes = {code.value[0]: code for code in StatusCode}
    for n in range(1, 301):
        code = 1 + n % 16
        request = EchoRequest(fail_code=code, fail_message=UNICODE_MESSAGE, fail_details=details(n))
        error = failure(lambda: client.echo.Unary(request))
        failed_with(error, codes[code], UNICODE_MESSAGE)
        ended(error)
        same(f"{n} details", values(error.trailing_metadata(), "grpc-status-details-bin"), [details(n)])
        facts["trailers"] = visible(error.trailing_metadata())
    return "300 failures"


def error_trailers_only(client, facts):
    unknown = client.channel.unary_unary("/sluice.loadtest.v1.Echo/NoSuchMethod")
    same("status", failure(lambda: unknown(b"")).code(), StatusCode.UNIMPLEMENTED)
    error = failure(lambda: client.echo.Unary(EchoRequest(fail_code=5, fail_message="no such thing")))
    facts["headers"], facts["trailers"] = visible(error.initial_metadata()), visible(error.trailing_metadata())
    failed_with(error, StatusCode.NOT_FOUND, "no such thing")
    ended(error)
    return "UNIMPLEMENTED, NOT_FOUND"


def error_after_messages(client, facts):
    request = EchoRequest(response_count=5, fail_code=9, fail_message=UNICODE_MESSAGE, fail_details=details(40))
    call = client.echo.ServerStream(request)
    for _ in range(5):
        next(call)
    failed_with(failure(lambda: next(call)), StatusCode.FAILED_PRECONDITION, UNICODE_MESSAGE)
    ended(call)
    facts["trailers"] = visible(call.trailing_metadata())
    same("grpc-status-details-bin", values(call.trailing_metadata(), "grpc-status-details-bin"), [details(40)])
    stream = Bidi(client)
    for i in range(3):
        stream.send(payload=payload(10, i))
        stream.answered(payload(10, i), i + 1, 10 * (i + 1))
    stream.send(fail_code=10, fail_message="enough")
    error = failure(lambda: list(stream.call))
    stream.half_close()  # ends the thread that reads the queue
    failed_with(error, StatusCode.ABORTED, "enough")
    ended(error)
    return "FAILED_PRECONDITION after 5, ABORTED after 3"


def large(client, _):
    message, _ = call_unary(client, EchoRequest(payload=payload(MIB, 3)))
    same("payload", message.payload, payload(MIB, 3))
    counts(message, 1, MIB)
    stream = Bidi(client)
    for i in range(4):
        stream.send(payload=payload(MIB, i))
        stream.answered(payload(MIB, i), i + 1, (i + 1) * MIB)
    stream.half_close()
    stream.ends_well()
    return "1 + 4 MiB each way"


def peer(client, facts):
    message, _ = call_unary(client, EchoRequest())
    peers = connected_peers()
    source, _ = split(message.peer)
    text = lambda ip, port: f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"
    facts["peer"] = " ".join(sorted(text(*p) for p in peers))
    facts["source"] = str(source)
    if client.expect_peer:
        same("peer", peers, {split(client.target)})
    if client.expect_source:
        same("source", source, client.expect_source)
    return "seen"


ALL = [
    unary,
    unary_spread,
    client_stream,
    server_stream,
    bidi,
    metadata,
    deadline,
    cancel,
    error_details,
    error_trailers_only,
    error_after_messages,
    large,
    peer,
]
