// What the scenarios share: patterned payloads, what every response owes its client, metadata sets.
// In: what a call returned. Out: nothing, or a Failure that names the expectation that failed.
package dev.sluice.tests.echo;

import dev.sluice.tests.echo.Client.End;
import dev.sluice.tests.echo.Client.Failure;
import io.grpc.Metadata;
import io.grpc.Status;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeSet;

final class Expect {
  static final String UNICODE_MESSAGE = "100 % – Zürich, 東京, 🚀\r\n\ttab \"quoted\"";

  private Expect() {}

  static byte[] payload(int n, int seed) {
    byte[] bytes = new byte[n];
    for (int i = 0; i < n; i++) {
      bytes[i] = (byte) ((31 * i + seed) % 251);
    }
    return bytes;
  }

  /** Begins with an illegal protobuf tag: clients that try to read a google.rpc.Status leave it alone. */
  static byte[] details(int n) {
    byte[] bytes = payload(n, 0);
    bytes[0] = 0;
    return bytes;
  }

  private static String shown(Object value) {
    String text = value instanceof byte[] bytes
        ? bytes.length + " bytes " + HexFormat.of().formatHex(bytes, 0, Math.min(64, bytes.length))
        : String.valueOf(value);
    return text.length() > 200 ? text.substring(0, 200) : text;
  }

  static void same(String what, Object got, Object want) throws Failure {
    if (!Objects.deepEquals(got, want)) {
      throw new Failure(what + ": got " + shown(got) + ", want " + shown(want));
    }
  }

  private static Metadata.Key<String> ascii(String name) {
    return Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER);
  }

  private static Metadata.Key<byte[]> binary(String name) {
    return Metadata.Key.of(name, Metadata.BINARY_BYTE_MARSHALLER);
  }

  /** All values of a name in order, `-bin` ones in hex. */
  static List<String> values(Metadata metadata, String name) {
    List<String> values = new ArrayList<>();
    if (name.endsWith(Metadata.BINARY_HEADER_SUFFIX)) {
      Iterable<byte[]> all = metadata.getAll(binary(name));
      for (byte[] value : all == null ? List.<byte[]>of() : all) {
        values.add(HexFormat.of().formatHex(value));
      }
    } else {
      Iterable<String> all = metadata.getAll(ascii(name));
      for (String value : all == null ? List.<String>of() : all) {
        values.add(value);
      }
    }
    return values;
  }

  /** The message names the pod that the header names. */
  static void podIs(Metadata headers, EchoResponse message) throws Failure {
    if (message.getPod().isEmpty()) {
      throw new Failure("the message names no pod");
    }
    same("header x-sluice-pod", values(headers, "x-sluice-pod"), List.of(message.getPod()));
  }

  static void ended(Metadata trailers) throws Failure {
    same("trailer x-sluice-trailer", values(trailers, "x-sluice-trailer"), List.of("end"));
  }

  static void counts(EchoResponse message, int messages, long size) throws Failure {
    same("received_messages", message.getReceivedMessages(), messages);
    same("received_bytes", message.getReceivedBytes(), size);
  }

  static void failedWith(End end, Status.Code code, String message) throws Failure {
    same("status", end.status().getCode(), code);
    same("status message", end.status().getDescription(), message);
  }

  static void detailsAre(End end, byte[] want) throws Failure {
    List<String> got = values(end.trailers(), "grpc-status-details-bin");
    same("grpc-status-details-bin", got, List.of(HexFormat.of().formatHex(want)));
  }

  /**
   * Metadata for comparison between runs: sorted by name, duplicates in order, `-bin` in hex, without what differs by
   * time, pod or address.
   */
  static List<List<String>> visible(Metadata metadata) {
    List<List<String>> shown = new ArrayList<>();
    TreeSet<String> names = new TreeSet<>(metadata.keys());
    names.removeAll(List.of("date", "x-sluice-pod", "x-sluice-endpoint"));
    for (String name : names) {
      for (String value : values(metadata, name)) {
        shown.add(List.of(name, value));
      }
    }
    return shown;
  }

  /** What the metadata scenario sends under a prefix, `-bin` values in hex. */
  private static Map<String, List<String>> metadataSet(String prefix) {
    byte[] printable = new byte[0x7f - 0x21];
    for (int i = 0; i < printable.length; i++) {
      printable[i] = (byte) (0x21 + i);
    }
    byte[] all = new byte[256];
    for (int i = 0; i < 256; i++) {
      all[i] = (byte) i;
    }
    Map<String, List<String>> set = new LinkedHashMap<>();
    set.put(prefix + "ascii", List.of(new String(printable, StandardCharsets.US_ASCII) + " end"));
    set.put(prefix + "dup", List.of("1", "2", "3"));
    set.put(prefix + "all-bin", List.of(HexFormat.of().formatHex(all)));
    set.put(prefix + "dup-bin", List.of("00", "fffe"));
    set.put(prefix + "empty", List.of(""));
    set.put(prefix + "empty-bin", List.of(""));
    return set;
  }

  static Metadata metadataOf(String... prefixes) {
    Metadata metadata = new Metadata();
    for (String prefix : prefixes) {
      metadataSet(prefix).forEach((name, values) -> {
        for (String value : values) {
          if (name.endsWith(Metadata.BINARY_HEADER_SUFFIX)) {
            metadata.put(binary(name), HexFormat.of().parseHex(value));
          } else {
            metadata.put(ascii(name), value);
          }
        }
      });
    }
    return metadata;
  }

  /** The metadata holds the whole set of one prefix, and nothing of it beyond. */
  static void carries(String what, Metadata metadata, String prefix) throws Failure {
    Map<String, List<String>> set = metadataSet(prefix);
    for (Map.Entry<String, List<String>> entry : set.entrySet()) {
      same(what + " " + entry.getKey(), values(metadata, entry.getKey()), entry.getValue());
    }
    TreeSet<String> echoed = new TreeSet<>(metadata.keys());
    echoed.removeIf(name -> !name.startsWith("x-echo-"));
    same(what + ": names that begin with x-echo-", echoed, new TreeSet<>(set.keySet()));
  }
}
