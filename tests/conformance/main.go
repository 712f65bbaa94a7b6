// Conformance is the plain HTTP/2 server behind the cases of h2spec: prior knowledge, no TLS, no HTTP/1. It answers
// every request, when its body has come, with a head, DATA and END_STREAM; the cases about windows need that DATA.
//
//	conformance ADDRESS
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/net/http2"
)

// How long a connection that we end waits for its peer's end.
const linger = 2 * time.Second

func main() {
	if len(os.Args) != 2 {
		fail("usage: conformance ADDRESS")
	}
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		fail(fmt.Sprintf("cannot listen on %s: %v", os.Args[1], err))
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			fail(fmt.Sprintf("cannot accept: %v", err))
		}
		go serve(conn.(*net.TCPConn))
	}
}

func fail(why string) {
	fmt.Fprintln(os.Stderr, "conformance: "+why)
	os.Exit(2)
}

func serve(conn *net.TCPConn) {
	new(http2.Server).ServeConn(lingering{conn}, &http2.ServeConnOpts{Handler: http.HandlerFunc(answer)})
}

func answer(w http.ResponseWriter, request *http.Request) {
	// A body that broke off has its own error; the case looks at frames, not at us.
	_, _ = io.Copy(io.Discard, request.Body)
	w.Header().Set("content-type", "text/plain")
	_, _ = io.WriteString(w, "sluice conformance: a body of more than a few bytes\n")
}

// lingering closes as an HTTP/2 server should: with bytes unread, a plain close would be a reset, which destroys what was
// said last (a GOAWAY).
type lingering struct{ *net.TCPConn }

func (c lingering) Close() error {
	_ = c.CloseWrite()
	_ = c.SetReadDeadline(time.Now().Add(linger))
	_, _ = io.Copy(io.Discard, c.TCPConn)
	return c.TCPConn.Close()
}
