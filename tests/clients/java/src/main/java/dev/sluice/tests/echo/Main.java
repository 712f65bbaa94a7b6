// Drives grpc-java (netty-shaded) with default settings through the scenarios of ../README.md.
// In: the command line. Out: one JSON line per scenario, exit status. It knows nothing of sluice.
package dev.sluice.tests.echo;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import java.io.PrintStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

final class Main {
  private static final Gson JSON = new GsonBuilder().disableHtmlEscaping().create();

  private Main() {}

  private static RuntimeException usage(String error) {
    System.err.println(error + "\nusage: java [--expect-peer] [--expect-source IP] IP:PORT [SCENARIO…]");
    System.exit(2);
    return new IllegalStateException();
  }

  /** `ip:port`, `[ip]:port`; Java makes a v4-mapped ip a plain v4 one. */
  static InetSocketAddress address(String text) throws Exception {
    int colon = text.lastIndexOf(':');
    String ip = text.substring(0, colon).replace("[", "").replace("]", "");
    return new InetSocketAddress(InetAddress.getByName(ip), Integer.parseInt(text.substring(colon + 1)));
  }

  public static void main(String[] args) throws Exception {
    boolean expectPeer = false;
    InetAddress expectSource = null;
    List<String> words = new ArrayList<>();
    for (int i = 0; i < args.length; i++) {
      switch (args[i]) {
        case "--expect-peer" -> expectPeer = true;
        case "--expect-source" -> {
          if (++i == args.length) {
            throw usage("--expect-source needs an IP");
          }
          expectSource = InetAddress.getByName(args[i]);
        }
        default -> words.add(args[i]);
      }
    }
    if (words.isEmpty() || !words.get(0).contains(":")) {
      throw usage("no target");
    }
    String target = words.remove(0);
    ManagedChannel channel = ManagedChannelBuilder.forTarget(target).usePlaintext().build();
    Client client = new Client(channel, address(target), expectPeer, expectSource);
    Map<String, Client.Scenario> all = Scenarios.all();
    for (String name : words) {
      if (!all.containsKey(name)) {
        throw usage("no scenario " + name + "; README.md beside the clients lists them");
      }
    }
    PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
    boolean failed = false;
    for (String name : words.isEmpty() ? all.keySet() : words) {
      Map<String, Object> line = new LinkedHashMap<>();
      line.put("client", "java");
      line.put("scenario", name);
      Map<String, Object> facts = new LinkedHashMap<>();
      boolean ok = true;
      String detail;
      try {
        detail = all.get(name).run(client, facts);
      } catch (Exception e) {
        detail = e.toString();
        ok = false;
        failed = true;
      }
      line.put("ok", ok);
      line.put("detail", detail.length() > 600 ? detail.substring(0, 600) : detail);
      line.putAll(facts);
      out.println(JSON.toJson(line));
    }
    channel.shutdownNow();
    System.exit(failed ? 1 : 0);
  }
}
