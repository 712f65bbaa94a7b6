"""Drives grpcio (C-core) with default settings through the scenarios of ../README.md.

In: the command line. Out: one JSON line per scenario, exit status. It knows nothing of sluice.
"""

import argparse
import ipaddress
import json
import sys

import grpc

import scenarios
from echo_pb2_grpc import EchoStub


class Client:
    """What every scenario works with: one channel and what the command line expects of it."""

    def __init__(self, options):
        self.target = options.target
        self.expect_peer = options.expect_peer
        self.expect_source = options.expect_source
        self.channel = grpc.insecure_channel(options.target)
        self.echo = EchoStub(self.channel)


def main():
    names = [run.__name__ for run in scenarios.ALL]
    parser = argparse.ArgumentParser(prog="python")
    parser.add_argument("--expect-peer", action="store_true", help="the client's view of its peer must be TARGET")
    parser.add_argument("--expect-source", type=ipaddress.ip_address, metavar="IP")
    parser.add_argument("target", metavar="TARGET", help="IP:PORT")
    parser.add_argument("scenario", nargs="*", metavar="SCENARIO", help=", ".join(names))
    options = parser.parse_args()
    for name in options.scenario:
        if name not in names:
            parser.error(f"no scenario {name}; README.md beside the clients lists them")
    client = Client(options)
    failed = False
    for name in options.scenario or names:
        facts = {}
        try:
            detail, ok = getattr(scenarios, name)(client, facts), True
        except (AssertionError, OSError, ValueError, grpc.RpcError) as error:
            detail, ok, failed = f"{error!r:.600}", False, True
        print(json.dumps({"client": "python", "scenario": name, "ok": ok, "detail": detail, **facts}), flush=True)
    client.channel.close()
    sys.exit(1 if failed else 0)


main()
