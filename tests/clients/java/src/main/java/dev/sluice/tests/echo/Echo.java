// The methods of echo.proto. Written by hand: with them only the messages are generated, and protoc needs no plug-in.
package dev.sluice.tests.echo;

import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.protobuf.ProtoUtils;

final class Echo {
  static final MethodDescriptor<EchoRequest, EchoResponse> UNARY = method("Unary", MethodType.UNARY);
  static final MethodDescriptor<EchoRequest, EchoResponse> CLIENT_STREAM = method("ClientStream", MethodType.CLIENT_STREAMING);
  static final MethodDescriptor<EchoRequest, EchoResponse> SERVER_STREAM = method("ServerStream", MethodType.SERVER_STREAMING);
  static final MethodDescriptor<EchoRequest, EchoResponse> BIDI_STREAM = method("BidiStream", MethodType.BIDI_STREAMING);

  private Echo() {}

  static MethodDescriptor<EchoRequest, EchoResponse> method(String name, MethodType type) {
    return MethodDescriptor.<EchoRequest, EchoResponse>newBuilder()
        .setType(type)
        .setFullMethodName(MethodDescriptor.generateFullMethodName("sluice.loadtest.v1.Echo", name))
        .setRequestMarshaller(ProtoUtils.marshaller(EchoRequest.getDefaultInstance()))
        .setResponseMarshaller(ProtoUtils.marshaller(EchoResponse.getDefaultInstance()))
        .build();
  }
}
