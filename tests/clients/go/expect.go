// What the scenarios share: patterned payloads, what every response owes its client, metadata sets.
// In: what a call returned. Out: nil, or an error that names the expectation that failed.
package main

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"sort"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "sluice.dev/tests/clients/go/echopb"
)

const unicodeMessage = "100 % – Zürich, 東京, 🚀\r\n\ttab \"quoted\""

func payload(n, seed int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte((31*i + seed) % 251)
	}
	return p
}

// details begins with an illegal protobuf tag: clients that try to read a google.rpc.Status leave it alone.
func details(n int) []byte {
	p := payload(n, 0)
	p[0] = 0
	return p
}

func same(what string, got, want any) error {
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		return fmt.Errorf("%s: got %.200s, want %.200s", what, g, w)
	}
	return nil
}

func sameBytes(what string, got, want []byte) error {
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s: got %d bytes %.32x…, want %d bytes %.32x…", what, len(got), got, len(want), want)
	}
	return nil
}

// first is the first failure among checks.
func first(checks ...error) error {
	for _, err := range checks {
		if err != nil {
			return err
		}
	}
	return nil
}

// podIs: the message names the pod that the header names.
func podIs(headers metadata.MD, m *pb.EchoResponse) error {
	if m.Pod == "" {
		return fmt.Errorf("the message names no pod")
	}
	return same("header x-sluice-pod", headers.Get("x-sluice-pod"), []string{m.Pod})
}

func ended(trailers metadata.MD) error {
	return same("trailer x-sluice-trailer", trailers.Get("x-sluice-trailer"), []string{"end"})
}

func counts(m *pb.EchoResponse, messages, size int) error {
	return first(same("received_messages", m.ReceivedMessages, messages), same("received_bytes", m.ReceivedBytes, size))
}

func failedWith(err error, code codes.Code, message string) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return fmt.Errorf("got %v, want status %v", err, code)
	}
	return first(same("status", s.Code(), code), same("status message", s.Message(), message))
}

func codeIs(err error, code codes.Code) error { return same("status", status.Code(err), code) }

// visible lists metadata for comparison between runs: sorted by name, duplicates in order, `-bin` in hex,
// without what differs by time, pod or address.
func visible(md metadata.MD) [][2]string {
	out := [][2]string{}
	for name, values := range md {
		if name == "date" || name == "x-sluice-pod" || name == "x-sluice-endpoint" {
			continue
		}
		for _, v := range values {
			if strings.HasSuffix(name, "-bin") {
				v = hex.EncodeToString([]byte(v))
			}
			out = append(out, [2]string{name, v})
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i][0] < out[j][0] })
	return out
}

// metadataSet is what the metadata scenario sends under a prefix: name, value, name, value…
func metadataSet(prefix string) []string {
	var ascii strings.Builder
	for c := byte('!'); c <= '~'; c++ {
		ascii.WriteByte(c)
	}
	var all []byte
	for b := range 256 {
		all = append(all, byte(b))
	}
	return []string{
		prefix + "ascii", ascii.String() + " end",
		prefix + "dup", "1", prefix + "dup", "2", prefix + "dup", "3",
		prefix + "all-bin", string(all),
		prefix + "dup-bin", "\x00", prefix + "dup-bin", "\xff\xfe",
		prefix + "empty", "", prefix + "empty-bin", "",
	}
}

// carries: md holds the whole set of one prefix, and nothing of it beyond.
func carries(what string, md metadata.MD, prefix string) error {
	want := metadata.Pairs(metadataSet(prefix)...)
	for name, values := range want {
		if err := same(what+" "+name, fmt.Sprintf("%q", md.Get(name)), fmt.Sprintf("%q", values)); err != nil {
			return err
		}
	}
	echoed := 0
	for name := range md {
		if strings.HasPrefix(name, "x-echo-") {
			echoed++
		}
	}
	return same(what+": names that begin with x-echo-", echoed, len(want))
}
