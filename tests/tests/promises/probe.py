"""A client inside a pod, as raw as a test needs it: TCP sockets, and HTTP/2 frames written by hand.

In: one JSON command a line on standard input. Out: one JSON answer a line. It knows nothing of sluice: it tells what
its sockets and the servers told it, and leaves the judgement to the test.
"""

import errno
import hashlib
import json
import socket
import struct
import sys
import threading
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
LIMIT = 20


def dial(command):
    """A connected socket; `mapped` dials an IPv4 address on an IPv6 socket, as Java and gRPC's C core do."""
    address, port = command["address"], command["port"]
    if command.get("mapped"):
        address = "::ffff:" + address
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.settimeout(LIMIT)
    sock.connect((address, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def facts(sock):
    """Both ends as the application sees them."""
    return {"local": sock.getsockname()[0], "peer": list(sock.getpeername()[:2])}


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name, value):
    """RFC 7541 6.2.2: without indexing, new name, no Huffman."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def fields(message):
    """A protobuf message as a dictionary by field number."""
    found, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        key = number()
        value = number()
        if key & 7 == 2:
            value, at = message[at : at + value], at + value
        found[key >> 3] = value
    return found


class Http2:
    """One HTTP/2 connection, one call at a time on it."""

    def __init__(self, command):
        self.sock = dial(command)
        self.next = 1
        self.taken = b""
        begin = PREFACE + frame(SETTINGS, 0, 0)
        if command.get("drip"):
            for byte in begin:
                self.sock.sendall(bytes([byte]))
                time.sleep(0.002)
        else:
            self.sock.sendall(begin)

    def read(self, size):
        while len(self.taken) < size:
            some = self.sock.recv(65536)
            if not some:
                raise ConnectionResetError(errno.ECONNRESET, "the connection ended")
            self.taken += some
        head, self.taken = self.taken[:size], self.taken[size:]
        return head

    def call(self, method="Unary", delay_ms=0, count=0):
        """Makes an Echo call; gives its messages, once the stream has ended with trailers."""
        stream, self.next = self.next, self.next + 2
        path = b"/sluice.loadtest.v1.Echo/" + method.encode()
        head = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"echo")]
        head += [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
        message = b"\x18" + varint(delay_ms) + b"\x20" + varint(count)
        body = b"\0" + struct.pack(">I", len(message)) + message
        block = b"".join(literal(*field) for field in head)
        self.sock.sendall(frame(HEADERS, 4, stream, block) + frame(DATA, 1, stream, body))
        data, heads = b"", 0
        while True:
            length, kind, flags, of = struct.unpack(">IBBI", b"\0" + self.read(9))
            payload = self.read(length)
            if kind == SETTINGS and not flags & 1:
                self.sock.sendall(frame(SETTINGS, 1, 0))
            elif kind == PING and not flags & 1:
                self.sock.sendall(frame(PING, 1, 0, payload))
            elif kind == RST and of == stream:
                raise ConnectionAbortedError(errno.ECONNABORTED, "RST_STREAM %d" % struct.unpack(">I", payload))
            elif kind == DATA and of == stream:
                data += payload
                if payload:
                    self.sock.sendall(frame(WINDOW, 0, 0, struct.pack(">I", length)))
            elif kind == HEADERS and of == stream:
                heads += 1
            if kind in (DATA, HEADERS) and of == stream and flags & 1:
                break
        messages = []
        while data:
            size = struct.unpack(">I", data[1:5])[0]
            messages.append(fields(data[5 : 5 + size]))
            data = data[5 + size :]
        if heads != 2 or kind != HEADERS:
            raise ConnectionAbortedError(errno.ECONNABORTED, "no answer but %d header blocks" % heads)
        return messages

    def ask(self):
        """Which pod answers, and which client it sees."""
        answer = self.call()[0]
        return {"pod": answer[2].decode(), "seen": answer[3].decode()}


connections = {}


def http2(command):
    """`connections` times: dial, make `calls` calls. `keep` leaves the (last) connection open under that name."""
    answers = []
    for _ in range(command.get("connections", 1)):
        try:
            connection = Http2(command)
            answer = facts(connection.sock)
            answer["answers"] = [connection.ask() for _ in range(command.get("calls", 1))]
            if "keep" in command:
                connections[command["keep"]] = connection
            else:
                connection.sock.close()
            answers.append(answer)
        except OSError as error:
            answers.append({"error": repr(error)})
    return answers


def more(command):
    """`calls` calls on a kept connection."""
    connection = connections[command["kept"]]
    return {"answers": [connection.ask() for _ in range(command["calls"])]}


def until(command):
    """Calls on a kept connection until that pod answers; how many there were, and when the answer came."""
    connection, calls = connections[command["kept"]], 0
    end = time.monotonic() + command["limit"]
    while time.monotonic() < end:
        calls += 1
        if connection.ask()["pod"] == command["pod"]:
            return {"calls": calls, "at": time.monotonic_ns()}
    return {"calls": calls, "error": "never"}


def stream(command):
    """A server stream on a connection of its own."""
    connection = Http2(command)
    print(json.dumps(facts(connection.sock)), flush=True)
    messages = connection.call("ServerStream", command["delay_ms"], command["count"])
    return {"messages": len(messages), "pod": messages[0][2].decode()}


def tcp(command):
    """Reads first, then sends, half-closes, and reads to the end: each only if told. Times out as an error."""
    sock = dial(command)
    answer = facts(sock)
    sent = b"x" * command["bytes"] if "bytes" in command else command.get("send", "").encode()
    if "first" in command:
        answer["first"] = sock.recv(command["first"]).decode()

    def send():
        sock.sendall(sent)
        if command.get("half_close"):
            sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    got = b"".join(iter(lambda: sock.recv(1 << 20), b""))
    sender.join()
    answer["length"], answer["digest"] = len(got), hashlib.sha256(got).hexdigest()
    answer["text"] = got[:200].decode(errors="replace")
    return answer


def udp(command):
    """connect(2) on a datagram socket, and one datagram there; what comes back within a moment, if `echo`."""
    sock = socket.socket(socket.AF_INET6 if ":" in command["address"] else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(LIMIT)
    sock.connect((command["address"], command["port"]))
    answer = facts(sock)
    if command.get("echo"):
        sock.send(b"datagram")
        answer["text"] = sock.recv(100).decode()
    return answer


print("ready", flush=True)
for line in sys.stdin:
    command = json.loads(line)
    try:
        result = globals()[command["do"]](command)
    except OSError as error:
        result = {"error": repr(error)}
    print(json.dumps(result), flush=True)
