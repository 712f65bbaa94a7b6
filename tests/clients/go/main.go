// Drives grpc-go with default settings through the scenarios of ../README.md.
// In: the command line. Out: one JSON line per scenario, exit status. It knows nothing of sluice.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "sluice.dev/tests/clients/go/echopb"
)

// facts are what a scenario saw besides its verdict.
type facts map[string]any

// client is what every scenario works with: one channel and what the command line expects of it.
type client struct {
	conn         *grpc.ClientConn
	echo         pb.EchoClient
	target       netip.AddrPort
	expectPeer   bool
	expectSource string
}

type scenario struct {
	name string
	run  func(*client, facts) (string, error)
}

var scenarios = []scenario{
	{"unary", unary},
	{"unary_spread", unarySpread},
	{"client_stream", clientStream},
	{"server_stream", serverStream},
	{"bidi", bidi},
	{"metadata", metadataBothWays},
	{"deadline", deadline},
	{"cancel", cancelled},
	{"error_details", errorDetails},
	{"error_trailers_only", errorTrailersOnly},
	{"error_after_messages", errorAfterMessages},
	{"large", large},
	{"peer", peerAddresses},
}

func main() {
	if servesInstead() {
		return
	}
	expectPeer := flag.Bool("expect-peer", false, "the client's view of its peer must be TARGET")
	expectSource := flag.String("expect-source", "", "the server's view of the client must be this `IP`")
	flag.Parse()
	target, err := netip.ParseAddrPort(flag.Arg(0))
	if err != nil {
		fmt.Fprintln(os.Stderr, "usage: go [--expect-peer] [--expect-source IP] IP:PORT [SCENARIO…]:", err)
		os.Exit(2)
	}
	chosen, err := choose(flag.Args()[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	conn, err := grpc.NewClient(flag.Arg(0), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	c := &client{conn, pb.NewEchoClient(conn), target, *expectPeer, *expectSource}
	failed := false
	for _, s := range chosen {
		line := facts{}
		detail, err := s.run(c, line)
		if err != nil {
			failed, detail = true, err.Error()
		}
		line["client"], line["scenario"], line["ok"], line["detail"] = "go", s.name, err == nil, detail
		_ = json.NewEncoder(os.Stdout).Encode(line)
	}
	_ = conn.Close()
	if failed {
		os.Exit(1)
	}
}

func choose(names []string) ([]scenario, error) {
	if len(names) == 0 {
		return scenarios, nil
	}
	var chosen []scenario
next:
	for _, name := range names {
		for _, s := range scenarios {
			if s.name == name {
				chosen = append(chosen, s)
				continue next
			}
		}
		return nil, fmt.Errorf("no scenario %q; README.md beside the clients lists them", name)
	}
	return chosen, nil
}
