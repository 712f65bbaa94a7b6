// What every scenario works with: one channel, what the command line expects of it, and calls whose every event is seen.
package dev.sluice.tests.echo;

import static dev.sluice.tests.echo.Expect.counts;
import static dev.sluice.tests.echo.Expect.ended;
import static dev.sluice.tests.echo.Expect.podIs;
import static dev.sluice.tests.echo.Expect.same;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.Grpc;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;

record Client(Channel channel, InetSocketAddress target, boolean expectPeer, InetAddress expectSource) {
  /** Returns what was seen, and puts what else it saw into facts. */
  interface Scenario {
    String run(Client client, Map<String, Object> facts) throws Exception;
  }

  /** How a call ended. */
  record End(Status status, Metadata trailers) {}

  /** Any kind of call, read one event at a time: messages as they come, then the end. */
  static final class Call extends ClientCall.Listener<EchoResponse> {
    final ClientCall<EchoRequest, EchoResponse> call;
    private final BlockingQueue<Object> events = new LinkedBlockingQueue<>();
    volatile Metadata headers = new Metadata();
    End end;

    private Call(ClientCall<EchoRequest, EchoResponse> call, Metadata metadata) {
      this.call = call;
      call.start(this, metadata);
      call.request(1);
    }

    @Override
    public void onHeaders(Metadata headers) {
      this.headers = headers;
    }

    @Override
    public void onMessage(EchoResponse message) {
      events.add(message);
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
      events.add(new End(status, trailers));
    }

    Call send(EchoRequest.Builder request) {
      call.sendMessage(request.build());
      return this;
    }

    Call halfClose() {
      call.halfClose();
      return this;
    }

    /** The next message; null once the call has ended. */
    EchoResponse next() throws InterruptedException {
      if (end != null) {
        return null;
      }
      Object event = events.take();
      if (event instanceof End e) {
        end = e;
        return null;
      }
      call.request(1);
      return (EchoResponse) event;
    }

    /** The end, after any messages that are still to come. */
    End end() throws InterruptedException {
      while (next() != null) {}
      return end;
    }

    void answered(byte[] want, int messages, int size) throws Exception {
      EchoResponse message = next();
      if (message == null) {
        throw new Failure("the call ended early: " + end.status());
      }
      same("payload", message.getPayload().toByteArray(), want);
      counts(message, messages, size);
      podIs(headers, message);
    }

    /** Nothing more comes, and the end is a good one. */
    void endsWell() throws Exception {
      same("a message after the last", next(), null);
      same("status", end.status().getCode(), Status.Code.OK);
      ended(end.trailers());
    }

    SocketAddress peer() {
      return call.getAttributes().get(Grpc.TRANSPORT_ATTR_REMOTE_ADDR);
    }
  }

  static final class Failure extends Exception {
    private static final long serialVersionUID = 1;

    Failure(String message) {
      super(message);
    }

    @Override
    public String toString() {
      return getMessage();
    }
  }

  Call start(MethodDescriptor<EchoRequest, EchoResponse> method, CallOptions options, Metadata metadata) {
    return new Call(channel.newCall(method, options), metadata);
  }

  Call start(MethodDescriptor<EchoRequest, EchoResponse> method) {
    return start(method, CallOptions.DEFAULT, new Metadata());
  }

  /** A call with one request, sent and half-closed. */
  Call ask(MethodDescriptor<EchoRequest, EchoResponse> method, EchoRequest.Builder request) {
    return start(method).send(request).halfClose();
  }

  /** A good unary call: its message, and the call that holds headers and trailers. */
  record Good(EchoResponse message, Call call) {}

  /** Checks what every good response owes. */
  Good good(EchoRequest.Builder request, CallOptions options, Metadata metadata) throws Exception {
    Call call = start(Echo.UNARY, options, metadata).send(request).halfClose();
    EchoResponse message = call.next();
    if (message == null) {
      throw new Failure("status: got " + call.end.status() + ", want OK");
    }
    call.endsWell();
    podIs(call.headers, message);
    return new Good(message, call);
  }

  Good good(EchoRequest.Builder request) throws Exception {
    return good(request, CallOptions.DEFAULT, new Metadata());
  }

  /** After a cancelled or expired call the channel takes the next ones. */
  void worksOn() throws Exception {
    for (int i = 0; i < 3; i++) {
      good(EchoRequest.newBuilder());
    }
  }
}
