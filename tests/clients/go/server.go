package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	pb "sluice.dev/tests/clients/go/echopb"
)

// server answers Unary; the other methods are UNIMPLEMENTED.
type server struct {
	pb.UnimplementedEchoServer
	pod string
}

// serve is a stock grpc-go server, for what only that can show. It ends with the process.
func serve(args []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	listen := flags.String("listen", "[::]:50051", "`address` to listen on")
	pod := flags.String("pod", "", "the pod's `name`")
	age := flags.Duration("max-connection-age", 0, "as keepalive.ServerParameters has it; 0: none")
	if err := flags.Parse(args); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: *age}))
	pb.RegisterEchoServer(s, &server{pod: *pod})
	return s.Serve(listener)
}

func (s *server) Unary(ctx context.Context, request *pb.EchoRequest) (*pb.EchoResponse, error) {
	from, _ := peer.FromContext(ctx)
	local, err := netip.ParseAddrPort(from.LocalAddr.String())
	if err != nil {
		return nil, err
	}
	endpoint := netip.AddrPortFrom(local.Addr().Unmap(), local.Port()).String()
	_ = grpc.SetHeader(ctx, metadata.Pairs("x-sluice-pod", s.pod, "x-sluice-endpoint", endpoint))
	_ = grpc.SetTrailer(ctx, metadata.Pairs("x-sluice-trailer", "end"))
	return &pb.EchoResponse{
		Payload: request.Payload, Pod: s.pod, Peer: from.Addr.String(),
		ReceivedMessages: 1, ReceivedBytes: uint64(len(request.Payload)),
	}, nil
}

// servesInstead tells whether the command line asks for the server, which then has run to its end.
func servesInstead() bool {
	if len(os.Args) < 2 || os.Args[1] != "serve" {
		return false
	}
	if err := serve(os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return true
}
