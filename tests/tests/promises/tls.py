"""gRPC over TLS with grpcio: an Echo server of one method, and a client of 20 calls on one channel.

In: role, certificate, then the server's key and port or the client's target. Out: of the client, a line for each call:
the pod that answered, and the client's address as it saw it.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

for name in list(os.environ):
    # A proxy of this machine is not for pods.
    if name.lower().endswith("_proxy"):
        del os.environ[name]

import grpc
from echo_pb2 import EchoRequest, EchoResponse
from echo_pb2_grpc import EchoServicer, EchoStub, add_EchoServicer_to_server


def read(path):
    with open(path, "rb") as file:
        return file.read()


class Echo(EchoServicer):
    def Unary(self, request, context):
        return EchoResponse(pod=os.environ["POD_NAME"], peer=context.peer(), payload=request.payload)


role, certificate, *rest = sys.argv[1:]
if role == "server":
    key, port = rest
    server = grpc.server(ThreadPoolExecutor(4))
    add_EchoServicer_to_server(Echo(), server)
    credentials = grpc.ssl_server_credentials([(read(key), read(certificate))])
    assert server.add_secure_port("[::]:" + port, credentials)
    server.start()
    server.wait_for_termination()
else:
    options = [("grpc.ssl_target_name_override", "echo.default.svc")]
    with grpc.secure_channel(rest[0], grpc.ssl_channel_credentials(read(certificate)), options) as channel:
        for number in range(20):
            payload = b"%d" % number * 10000
            answer = EchoStub(channel).Unary(EchoRequest(payload=payload), timeout=20)
            assert answer.payload == payload
            print(answer.pod, answer.peer.rsplit(":", 1)[0])
