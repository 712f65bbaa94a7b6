"""What the scenarios share: patterned payloads, what every response owes its client, metadata sets.

In: what a call returned. Out: nothing, or an AssertionError that names the expectation that failed.
"""

import ipaddress
import os
import socket

import grpc

UNICODE_MESSAGE = '100 % – Zürich, 東京, 🚀\r\n\ttab "quoted"'


def payload(n, seed):
    return bytes((31 * i + seed) % 251 for i in range(n))


def details(n):
    """Begins with an illegal protobuf tag: clients that try to read a google.rpc.Status leave it alone."""
    return b"\0" + payload(n, 0)[1:]


def same(what, got, want):
    if got != want:
        raise AssertionError(f"{what}: got {got!r:.200}, want {want!r:.200}")


def values(metadata, name):
    return [v for k, v in metadata or () if k == name]


def pod_is(headers, message):
    """The message names the pod that the header names."""
    if not message.pod:
        raise AssertionError("the message names no pod")
    same("header x-sluice-pod", values(headers, "x-sluice-pod"), [message.pod])


def ended(call):
    same("trailer x-sluice-trailer", values(call.trailing_metadata(), "x-sluice-trailer"), ["end"])


def counts(message, messages, size):
    same("received_messages", message.received_messages, messages)
    same("received_bytes", message.received_bytes, size)


def failure(run):
    """The error that `run` ends with; it must end with one."""
    try:
        run()
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call succeeded, and must not")


def failed_with(error, code, message):
    same("status", error.code(), code)
    same("status message", error.details(), message)


def visible(metadata):
    """Metadata for comparison between runs: sorted by name, duplicates in order, `-bin` in hex,
    without what differs by time, pod or address."""
    hidden = ("date", "x-sluice-pod", "x-sluice-endpoint")
    shown = [(k, v.hex() if k.endswith("-bin") else v) for k, v in metadata or () if k not in hidden]
    return sorted(shown, key=lambda pair: pair[0])


def metadata_set(prefix):
    """What the metadata scenario sends under a prefix."""
    return [
        (prefix + "ascii", "".join(map(chr, range(0x21, 0x7F))) + " end"),
        (prefix + "dup", "1"),
        (prefix + "dup", "2"),
        (prefix + "dup", "3"),
        (prefix + "all-bin", bytes(range(256))),
        (prefix + "dup-bin", b"\x00"),
        (prefix + "dup-bin", b"\xff\xfe"),
        (prefix + "empty", ""),
        (prefix + "empty-bin", b""),
    ]


def carries(what, metadata, prefix):
    """The metadata holds the whole set of one prefix, and nothing of it beyond."""
    echoed = [(k, v) for k, v in metadata if k.startswith("x-echo-")]
    by_name = lambda pair: pair[0]  # stable: duplicates keep their order
    same(what, sorted(echoed, key=by_name), sorted(metadata_set(prefix), key=by_name))


def split(address):
    """`ip:port`, `[ip]:port` → (ip, port), with a v4-mapped ip as plain v4."""
    host, port = address.rsplit(":", 1)
    ip = ipaddress.ip_address(host.strip("[]"))
    return getattr(ip, "ipv4_mapped", None) or ip, int(port)


def connected_peers():
    """Whom this process's own TCP sockets are connected to, as getpeername(2) tells: grpcio's API does not say."""
    peers = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(fd))) as s:
                if s.family in (socket.AF_INET, socket.AF_INET6) and s.type == socket.SOCK_STREAM:
                    host, port = s.getpeername()[:2]
                    peers.add(split(f"{host}:{port}"))
        except OSError:
            continue  # not a socket, or not connected
    return peers
