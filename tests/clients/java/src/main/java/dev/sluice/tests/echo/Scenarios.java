// The scenarios, in the order of ../README.md.
// In: a client. Out: what was seen, or a Failure with the first expectation that failed.
package dev.sluice.tests.echo;

import static dev.sluice.tests.echo.Expect.UNICODE_MESSAGE;
import static dev.sluice.tests.echo.Expect.carries;
import static dev.sluice.tests.echo.Expect.counts;
import static dev.sluice.tests.echo.Expect.details;
import static dev.sluice.tests.echo.Expect.detailsAre;
import static dev.sluice.tests.echo.Expect.ended;
import static dev.sluice.tests.echo.Expect.failedWith;
import static dev.sluice.tests.echo.Expect.metadataOf;
import static dev.sluice.tests.echo.Expect.payload;
import static dev.sluice.tests.echo.Expect.podIs;
import static dev.sluice.tests.echo.Expect.same;
import static dev.sluice.tests.echo.Expect.values;
import static dev.sluice.tests.echo.Expect.visible;

import com.google.protobuf.ByteString;
import dev.sluice.tests.echo.Client.Call;
import dev.sluice.tests.echo.Client.End;
import dev.sluice.tests.echo.Client.Failure;
import dev.sluice.tests.echo.Client.Good;
import io.grpc.CallOptions;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.Status;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;

final class Scenarios {
  private static final int MIB = 1 << 20;

  private Scenarios() {}

  static Map<String, Client.Scenario> all() {
    Map<String, Client.Scenario> all = new LinkedHashMap<>();
    all.put("unary", Scenarios::unary);
    all.put("unary_spread", Scenarios::unarySpread);
    all.put("client_stream", Scenarios::clientStream);
    all.put("server_stream", Scenarios::serverStream);
    all.put("bidi", Scenarios::bidi);
    all.put("metadata", Scenarios::metadata);
    all.put("deadline", Scenarios::deadline);
    all.put("cancel", Scenarios::cancel);
    all.put("error_details", Scenarios::errorDetails);
    all.put("error_trailers_only", Scenarios::errorTrailersOnly);
    all.put("error_after_messages", Scenarios::errorAfterMessages);
    all.put("large", Scenarios::large);
    all.put("peer", Scenarios::peer);
    return all;
  }

  private static EchoRequest.Builder request() {
    return EchoRequest.newBuilder();
  }

  private static EchoRequest.Builder request(byte[] payload) {
    return request().setPayload(ByteString.copyFrom(payload));
  }

  private static String unary(Client client, Map<String, Object> facts) throws Exception {
    for (byte[] sent : List.of(payload(6, 1), new byte[0])) {
      Good good = client.good(request(sent));
      same("payload", good.message().getPayload().toByteArray(), sent);
      counts(good.message(), 1, sent.length);
      same("deadline_ms present", good.message().hasDeadlineMs(), false);
      facts.put("pod", good.message().getPod());
      facts.put("endpoint", String.join(" ", values(good.call().headers, "x-sluice-endpoint")));
    }
    Good good = client.good(request(payload(6, 1)).setResponseSize(777));
    same("payload's size", good.message().getPayload().size(), 777);
    return "3 calls";
  }

  private static String unarySpread(Client client, Map<String, Object> facts) throws Exception {
    Map<String, Integer> pods = new TreeMap<>();
    Map<String, Integer> endpoints = new TreeMap<>();
    for (int i = 0; i < 50; i++) {
      Good good = client.good(request());
      pods.merge(good.message().getPod(), 1, Integer::sum);
      for (String endpoint : values(good.call().headers, "x-sluice-endpoint")) {
        endpoints.merge(endpoint, 1, Integer::sum);
      }
    }
    facts.put("pods", pods);
    facts.put("endpoints", endpoints);
    return "50 calls";
  }

  private static String clientStream(Client client, Map<String, Object> facts) throws Exception {
    Call call = client.start(Echo.CLIENT_STREAM);
    int size = 0;
    for (int i = 0; i < 20; i++) {
      call.send(request(payload(10 * i, i)));
      size += 10 * i;
    }
    EchoResponse message = call.halfClose().next();
    if (message == null) {
      throw new Failure("no answer: " + call.end.status());
    }
    counts(message, 20, size);
    podIs(call.headers, message);
    call.endsWell();
    return "20 messages, " + size + " bytes";
  }

  private static String serverStream(Client client, Map<String, Object> facts) throws Exception {
    Call call = client.ask(Echo.SERVER_STREAM, request(payload(7, 2)).setResponseCount(20).setResponseSize(100));
    int answers = 0;
    for (EchoResponse message; (message = call.next()) != null; answers++) {
      same("payload's size", message.getPayload().size(), 100);
      counts(message, 1, 7);
      podIs(call.headers, message);
    }
    same("answers", answers, 20);
    call.endsWell();
    return "20 answers";
  }

  private static String bidi(Client client, Map<String, Object> facts) throws Exception {
    Call call = client.start(Echo.BIDI_STREAM);
    for (int i = 0; i < 20; i++) {
      call.send(request(payload(10, i))).answered(payload(10, i), i + 1, 10 * (i + 1));
    }
    call.halfClose().endsWell();
    call = client.start(Echo.BIDI_STREAM);
    for (int i = 0; i < 20; i++) {
      call.send(request(payload(10, i)));
    }
    call.halfClose();
    for (int i = 0; i < 20; i++) {
      call.answered(payload(10, i), i + 1, 10 * (i + 1));
    }
    call.endsWell();
    return "20 + 20 messages";
  }

  private static String metadata(Client client, Map<String, Object> facts) throws Exception {
    Metadata sent = metadataOf("x-echo-", "x-echo-trailer-");
    Call call = client.good(request(), CallOptions.DEFAULT, sent).call();
    facts.put("headers", visible(call.headers));
    facts.put("trailers", visible(call.end.trailers()));
    carries("header", call.headers, "x-echo-");
    carries("trailer", call.end.trailers(), "x-echo-trailer-");
    call = client.start(Echo.BIDI_STREAM, CallOptions.DEFAULT, metadataOf("x-echo-", "x-echo-trailer-"));
    call.send(request()).answered(new byte[0], 1, 0);
    call.halfClose().endsWell();
    carries("header", call.headers, "x-echo-");
    carries("trailer", call.end.trailers(), "x-echo-trailer-");
    return "unary and bidi";
  }

  private static String deadline(Client client, Map<String, Object> facts) throws Exception {
    CallOptions minute = CallOptions.DEFAULT.withDeadlineAfter(60, TimeUnit.SECONDS);
    long left = client.good(request(), minute, new Metadata()).message().getDeadlineMs();
    if (left < 50_000 || left > 61_000) {
      throw new Failure("deadline_ms: got " + left + ", want about 60000");
    }
    for (var method : List.of(Echo.UNARY, Echo.SERVER_STREAM)) {
      CallOptions soon = CallOptions.DEFAULT.withDeadlineAfter(300, TimeUnit.MILLISECONDS);
      Call call = client.start(method, soon, new Metadata());
      call.send(request().setDelayMs(5000).setResponseCount(2)).halfClose();
      same("answer", call.next(), null);
      same("status", call.end.status().getCode(), Status.Code.DEADLINE_EXCEEDED);
    }
    client.worksOn();
    return "60 s seen; DEADLINE_EXCEEDED twice";
  }

  private static String cancel(Client client, Map<String, Object> facts) throws Exception {
    for (EchoRequest.Builder kind : List.of(request().setDelayMs(20), request().setResponseSize(1000))) {
      Call call = client.ask(Echo.SERVER_STREAM, kind.setResponseCount(100_000));
      for (int i = 0; i < 3; i++) {
        EchoResponse message = call.next();
        same("ended", message == null, false);
        podIs(call.headers, message);
      }
      call.call.cancel("enough", null);
      same("status", call.end().status().getCode(), Status.Code.CANCELLED);
      client.worksOn();
    }
    Call call = client.start(Echo.BIDI_STREAM);
    for (int i = 0; i < 3; i++) {
      call.send(request()).answered(new byte[0], i + 1, 0);
    }
    call.call.cancel("enough", null);
    same("status", call.end().status().getCode(), Status.Code.CANCELLED);
    client.worksOn();
    return "CANCELLED three times";
  }

  private static String errorDetails(Client client, Map<String, Object> facts) throws Exception {
    for (int n = 1; n <= 300; n++) {
      int code = 1 + n % 16;
      EchoRequest.Builder request = request().setFailCode(code).setFailMessage(UNICODE_MESSAGE).setFailDetails(ByteString.copyFrom(details(n)));
      End end = client.ask(Echo.UNARY, request).end();
      failedWith(end, Status.fromCodeValue(code).getCode(), UNICODE_MESSAGE);
      ended(end.trailers());
      detailsAre(end, details(n));
      facts.put("trailers", visible(end.trailers()));
    }
    return "300 failures";
  }

  private static String errorTrailersOnly(Client client, Map<String, Object> facts) throws Exception {
    var unknown = Echo.method("NoSuchMethod", MethodType.UNARY);
    same("status", client.ask(unknown, request()).end().status().getCode(), Status.Code.UNIMPLEMENTED);
    Call call = client.ask(Echo.UNARY, request().setFailCode(5).setFailMessage("no such thing"));
    same("message", call.next(), null);
    facts.put("headers", visible(call.headers));
    facts.put("trailers", visible(call.end.trailers()));
    failedWith(call.end, Status.Code.NOT_FOUND, "no such thing");
    ended(call.end.trailers());
    return "UNIMPLEMENTED, NOT_FOUND";
  }

  private static String errorAfterMessages(Client client, Map<String, Object> facts) throws Exception {
    EchoRequest.Builder request = request().setResponseCount(5).setFailCode(9).setFailMessage(UNICODE_MESSAGE).setFailDetails(ByteString.copyFrom(details(40)));
    Call call = client.ask(Echo.SERVER_STREAM, request);
    int answers = 0;
    while (call.next() != null) {
      answers++;
    }
    same("answers", answers, 5);
    failedWith(call.end, Status.Code.FAILED_PRECONDITION, UNICODE_MESSAGE);
    ended(call.end.trailers());
    detailsAre(call.end, details(40));
    facts.put("trailers", visible(call.end.trailers()));
    call = client.start(Echo.BIDI_STREAM);
    for (int i = 0; i < 3; i++) {
      call.send(request(payload(10, i))).answered(payload(10, i), i + 1, 10 * (i + 1));
    }
    End end = call.send(request().setFailCode(10).setFailMessage("enough")).end();
    failedWith(end, Status.Code.ABORTED, "enough");
    ended(end.trailers());
    return "FAILED_PRECONDITION after 5, ABORTED after 3";
  }

  private static String large(Client client, Map<String, Object> facts) throws Exception {
    EchoResponse message = client.good(request(payload(MIB, 3))).message();
    same("payload", message.getPayload().toByteArray(), payload(MIB, 3));
    counts(message, 1, MIB);
    Call call = client.start(Echo.BIDI_STREAM);
    for (int i = 0; i < 4; i++) {
      call.send(request(payload(MIB, i))).answered(payload(MIB, i), i + 1, (i + 1) * MIB);
    }
    call.halfClose().endsWell();
    return "1 + 4 MiB each way";
  }

  private static String peer(Client client, Map<String, Object> facts) throws Exception {
    Good good = client.good(request());
    InetSocketAddress peer = (InetSocketAddress) good.call().peer();
    String ip = peer.getAddress().getHostAddress(); // Java writes IPv6 without "::"
    InetAddress source = Main.address(good.message().getPeer()).getAddress();
    facts.put("peer", (ip.contains(":") ? "[" + ip + "]" : ip) + ":" + peer.getPort());
    facts.put("source", source.getHostAddress());
    if (client.expectPeer()) {
      same("peer", peer, client.target());
    }
    if (client.expectSource() != null) {
      same("source", source, client.expectSource());
    }
    return "seen";
  }
}
