// The scenarios, in the order of ../README.md.
// In: a client. Out: what was seen, or the first expectation that failed.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	pb "sluice.dev/tests/clients/go/echopb"
)

type stream = grpc.BidiStreamingClient[pb.EchoRequest, pb.EchoResponse]

// call makes a unary call and checks what every good response owes.
func (c *client) call(ctx context.Context, request *pb.EchoRequest, opts ...grpc.CallOption) (*pb.EchoResponse, metadata.MD, metadata.MD, error) {
	var headers, trailers metadata.MD
	m, err := c.echo.Unary(ctx, request, append(opts, grpc.Header(&headers), grpc.Trailer(&trailers))...)
	if err != nil {
		return nil, nil, nil, err
	}
	return m, headers, trailers, first(podIs(headers, m), ended(trailers))
}

// worksOn: after a cancelled or expired call the channel takes the next ones.
func (c *client) worksOn() error {
	for range 3 {
		if _, _, _, err := c.call(context.Background(), &pb.EchoRequest{}); err != nil {
			return fmt.Errorf("the channel does not work on: %w", err)
		}
	}
	return nil
}

func unary(c *client, f facts) (string, error) {
	ctx := context.Background()
	for _, r := range []struct{ sent, want []byte }{{payload(6, 1), payload(6, 1)}, {nil, nil}} {
		m, headers, _, err := c.call(ctx, &pb.EchoRequest{Payload: r.sent})
		if err != nil {
			return "", err
		}
		if err := first(sameBytes("payload", m.Payload, r.want), counts(m, 1, len(r.sent))); err != nil {
			return "", err
		}
		if m.DeadlineMs != nil {
			return "", fmt.Errorf("deadline_ms is %d, and none was set", *m.DeadlineMs)
		}
		f["pod"], f["endpoint"] = m.Pod, strings.Join(headers.Get("x-sluice-endpoint"), " ")
	}
	m, _, _, err := c.call(ctx, &pb.EchoRequest{Payload: payload(6, 1), ResponseSize: 777})
	if err != nil {
		return "", err
	}
	return "3 calls", same("payload's size", len(m.Payload), 777)
}

func unarySpread(c *client, f facts) (string, error) {
	pods, endpoints := map[string]int{}, map[string]int{}
	for range 50 {
		m, headers, _, err := c.call(context.Background(), &pb.EchoRequest{})
		if err != nil {
			return "", err
		}
		pods[m.Pod]++
		for _, endpoint := range headers.Get("x-sluice-endpoint") {
			endpoints[endpoint]++
		}
	}
	f["pods"], f["endpoints"] = pods, endpoints
	return "50 calls", nil
}

func clientStream(c *client, _ facts) (string, error) {
	s, err := c.echo.ClientStream(context.Background())
	if err != nil {
		return "", err
	}
	size := 0
	for i := range 20 {
		if err := s.Send(&pb.EchoRequest{Payload: payload(10*i, i)}); err != nil {
			return "", err
		}
		size += 10 * i
	}
	m, err := s.CloseAndRecv()
	if err != nil {
		return "", err
	}
	headers, _ := s.Header()
	return fmt.Sprintf("20 messages, %d bytes", size), first(counts(m, 20, size), podIs(headers, m), ended(s.Trailer()))
}

func serverStream(c *client, _ facts) (string, error) {
	s, err := c.echo.ServerStream(context.Background(), &pb.EchoRequest{Payload: payload(7, 2), ResponseCount: 20, ResponseSize: 100})
	if err != nil {
		return "", err
	}
	n := 0
	for ; ; n++ {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
		headers, _ := s.Header()
		if err := first(same("payload's size", len(m.Payload), 100), counts(m, 1, 7), podIs(headers, m)); err != nil {
			return "", err
		}
	}
	return "20 answers", first(same("answers", n, 20), ended(s.Trailer()))
}

// answered reads one answer that must carry this payload.
func answered(s stream, want []byte, messages, size int) error {
	m, err := s.Recv()
	if err != nil {
		return err
	}
	headers, _ := s.Header()
	return first(sameBytes("payload", m.Payload, want), counts(m, messages, size), podIs(headers, m))
}

// halfClosed closes our side; the server must then end the stream well.
func halfClosed(s stream) error {
	if err := s.CloseSend(); err != nil {
		return err
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("after the half-close: got %v, want the end", err)
	}
	return ended(s.Trailer())
}

func bidi(c *client, _ facts) (string, error) {
	s, err := c.echo.BidiStream(context.Background())
	if err != nil {
		return "", err
	}
	for i := range 20 {
		if err := s.Send(&pb.EchoRequest{Payload: payload(10, i)}); err != nil {
			return "", err
		}
		if err := answered(s, payload(10, i), i+1, 10*(i+1)); err != nil {
			return "", fmt.Errorf("ping %d: %w", i, err)
		}
	}
	if err := halfClosed(s); err != nil {
		return "", err
	}
	if s, err = c.echo.BidiStream(context.Background()); err != nil {
		return "", err
	}
	for i := range 20 {
		if err := s.Send(&pb.EchoRequest{Payload: payload(10, i)}); err != nil {
			return "", err
		}
	}
	if err := s.CloseSend(); err != nil {
		return "", err
	}
	for i := range 20 {
		if err := answered(s, payload(10, i), i+1, 10*(i+1)); err != nil {
			return "", fmt.Errorf("answer %d: %w", i, err)
		}
	}
	return "20 + 20 messages", halfClosed(s)
}

func metadataBothWays(c *client, f facts) (string, error) {
	sent := append(metadataSet("x-echo-"), metadataSet("x-echo-trailer-")...)
	ctx := metadata.AppendToOutgoingContext(context.Background(), sent...)
	_, headers, trailers, err := c.call(ctx, &pb.EchoRequest{})
	if err != nil {
		return "", err
	}
	f["headers"], f["trailers"] = visible(headers), visible(trailers)
	if err := first(carries("header", headers, "x-echo-"), carries("trailer", trailers, "x-echo-trailer-")); err != nil {
		return "", err
	}
	s, err := c.echo.BidiStream(ctx)
	if err != nil {
		return "", err
	}
	if err := first(s.Send(&pb.EchoRequest{}), answered(s, nil, 1, 0), halfClosed(s)); err != nil {
		return "", err
	}
	headers, _ = s.Header()
	return "unary and bidi", first(carries("header", headers, "x-echo-"), carries("trailer", s.Trailer(), "x-echo-trailer-"))
}

func deadline(c *client, _ facts) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	m, _, _, err := c.call(ctx, &pb.EchoRequest{})
	if err != nil {
		return "", err
	}
	if d := m.GetDeadlineMs(); d < 50_000 || d > 61_000 {
		return "", fmt.Errorf("deadline_ms: got %d, want about 60000", d)
	}
	short, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	_, err = c.echo.Unary(short, &pb.EchoRequest{DelayMs: 5000})
	if err := codeIs(err, codes.DeadlineExceeded); err != nil {
		return "", err
	}
	short, cancel = context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	s, err := c.echo.ServerStream(short, &pb.EchoRequest{DelayMs: 5000, ResponseCount: 2})
	if err == nil {
		_, err = s.Recv()
	}
	return "60 s seen; DEADLINE_EXCEEDED twice", first(codeIs(err, codes.DeadlineExceeded), c.worksOn())
}

func cancelled(c *client, _ facts) (string, error) {
	for _, r := range []*pb.EchoRequest{
		{DelayMs: 20, ResponseCount: 100_000},
		{ResponseSize: 1000, ResponseCount: 100_000},
	} {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		s, err := c.echo.ServerStream(ctx, r)
		for i := 0; err == nil; i++ {
			if i == 3 {
				cancel()
			}
			_, err = s.Recv()
		}
		if err := first(codeIs(err, codes.Canceled), c.worksOn()); err != nil {
			return "", err
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s, err := c.echo.BidiStream(ctx)
	if err != nil {
		return "", err
	}
	for i := range 3 {
		if err := first(s.Send(&pb.EchoRequest{}), answered(s, nil, i+1, 0)); err != nil {
			return "", err
		}
	}
	cancel()
	_, err = s.Recv()
	return "CANCELLED three times", first(codeIs(err, codes.Canceled), c.worksOn())
}

func errorDetails(c *client, f facts) (string, error) {
	for n := 1; n <= 300; n++ {
		code := codes.Code(1 + n%16)
		var trailers metadata.MD
		_, err := c.echo.Unary(context.Background(), &pb.EchoRequest{FailCode: uint32(code), FailMessage: unicodeMessage, FailDetails: details(n)}, grpc.Trailer(&trailers))
		got := trailers.Get("grpc-status-details-bin")
		if err := first(failedWith(err, code, unicodeMessage), ended(trailers), same("grpc-status-details-bin: values", len(got), 1)); err != nil {
			return "", fmt.Errorf("%d bytes: %w", n, err)
		}
		if err := sameBytes("grpc-status-details-bin", []byte(got[0]), details(n)); err != nil {
			return "", err
		}
		f["trailers"] = visible(trailers)
	}
	return "300 failures", nil
}

func errorTrailersOnly(c *client, f facts) (string, error) {
	err := c.conn.Invoke(context.Background(), "/sluice.loadtest.v1.Echo/NoSuchMethod", &pb.EchoRequest{}, &pb.EchoResponse{})
	if err := codeIs(err, codes.Unimplemented); err != nil {
		return "", err
	}
	var headers, trailers metadata.MD
	_, err = c.echo.Unary(context.Background(), &pb.EchoRequest{FailCode: 5, FailMessage: "no such thing"}, grpc.Header(&headers), grpc.Trailer(&trailers))
	f["headers"], f["trailers"] = visible(headers), visible(trailers)
	return "UNIMPLEMENTED, NOT_FOUND", first(failedWith(err, codes.NotFound, "no such thing"), ended(trailers))
}

func errorAfterMessages(c *client, f facts) (string, error) {
	s, err := c.echo.ServerStream(context.Background(), &pb.EchoRequest{ResponseCount: 5, FailCode: 9, FailMessage: unicodeMessage, FailDetails: details(40)})
	n := -1
	for ; err == nil; n++ {
		_, err = s.Recv()
	}
	if err := first(failedWith(err, codes.FailedPrecondition, unicodeMessage), same("answers", n, 5), ended(s.Trailer())); err != nil {
		return "", err
	}
	f["trailers"] = visible(s.Trailer())
	if err := same("grpc-status-details-bin", s.Trailer().Get("grpc-status-details-bin"), []string{string(details(40))}); err != nil {
		return "", err
	}
	b, err := c.echo.BidiStream(context.Background())
	if err != nil {
		return "", err
	}
	for i := range 3 {
		if err := first(b.Send(&pb.EchoRequest{Payload: payload(10, i)}), answered(b, payload(10, i), i+1, 10*(i+1))); err != nil {
			return "", err
		}
	}
	if err := b.Send(&pb.EchoRequest{FailCode: 10, FailMessage: "enough"}); err != nil {
		return "", err
	}
	for err = nil; err == nil; {
		_, err = b.Recv()
	}
	return "FAILED_PRECONDITION after 5, ABORTED after 3", first(failedWith(err, codes.Aborted, "enough"), ended(b.Trailer()))
}

func large(c *client, _ facts) (string, error) {
	const mib = 1 << 20
	m, _, _, err := c.call(context.Background(), &pb.EchoRequest{Payload: payload(mib, 3)})
	if err != nil {
		return "", err
	}
	if err := first(sameBytes("payload", m.Payload, payload(mib, 3)), counts(m, 1, mib)); err != nil {
		return "", err
	}
	s, err := c.echo.BidiStream(context.Background())
	if err != nil {
		return "", err
	}
	for i := range 4 {
		if err := first(s.Send(&pb.EchoRequest{Payload: payload(mib, i)}), answered(s, payload(mib, i), i+1, (i+1)*mib)); err != nil {
			return "", err
		}
	}
	return "1 + 4 MiB each way", halfClosed(s)
}

func peerAddresses(c *client, f facts) (string, error) {
	var p peer.Peer
	m, _, _, err := c.call(context.Background(), &pb.EchoRequest{}, grpc.Peer(&p))
	if err != nil {
		return "", err
	}
	source, err := netip.ParseAddrPort(m.Peer)
	if err != nil {
		return "", fmt.Errorf("the server's view of the client: %w", err)
	}
	f["peer"], f["source"] = p.Addr.String(), source.Addr().Unmap().String()
	if c.expectPeer {
		if err := same("peer", p.Addr, c.target); err != nil {
			return "", err
		}
	}
	if c.expectSource != "" {
		want, err := netip.ParseAddr(c.expectSource)
		if err := first(err, same("source", f["source"], want)); err != nil {
			return "", err
		}
	}
	return "seen", nil
}
