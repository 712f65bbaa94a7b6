// The scenarios, in the order of ../README.md.
// In: a client. Out: what was seen, or an error with the first expectation that failed.
'use strict';

const net = require('node:net');
const { Metadata, status: codes } = require('@grpc/grpc-js');
const {
  UNICODE_MESSAGE, Watched, canonical, carries, counts, details, ended, failedWith, good, ipOf, joined, metadataSet, payload, podIs, same, single, visible, worksOn,
} = require('./expect');

const MIB = 1 << 20;
const soon = () => ({ deadline: Date.now() + 300 });

async function unary(client, facts) {
  for (const sent of [payload(6, 1), Buffer.alloc(0)]) {
    const { message, headers } = await good(client, { payload: sent });
    same('payload', message.payload, sent);
    counts(message, 1, sent.length);
    same('deadline_ms', message.deadline_ms, undefined);
    facts.pod = message.pod;
    facts.endpoint = headers.get('x-sluice-endpoint').join(' ');
  }
  const { message } = await good(client, { payload: payload(6, 1), response_size: 777 });
  same("payload's size", message.payload.length, 777);
  return '3 calls';
}

async function unary_spread(client, facts) {
  facts.pods = {};
  facts.endpoints = {};
  for (let i = 0; i < 50; i += 1) {
    const { message, headers } = await good(client, {});
    facts.pods[message.pod] = (facts.pods[message.pod] ?? 0) + 1;
    for (const endpoint of headers.get('x-sluice-endpoint')) facts.endpoints[endpoint] = (facts.endpoints[endpoint] ?? 0) + 1;
  }
  return '50 calls';
}

async function client_stream(client) {
  const requests = Array.from({ length: 20 }, (_, i) => ({ payload: payload(10 * i, i) }));
  const { message, headers, status } = await single(client, 'ClientStream', { requests });
  same('status', status.code, codes.OK);
  counts(message, 20, 1900);
  podIs(headers, message);
  ended(status.metadata);
  return '20 messages, 1900 bytes';
}

async function server_stream(client) {
  const stream = new Watched(client.echo.ServerStream({ payload: payload(7, 2), response_count: 20, response_size: 100 }));
  for (let i = 0; i < 20; i += 1) {
    const message = await stream.next();
    same('answer', message?.payload.length, 100);
    counts(message, 1, 7);
    podIs(stream.headers, message);
  }
  await stream.endsWell();
  return '20 answers';
}

async function bidi(client) {
  const pingPong = new Watched(client.echo.BidiStream());
  for (let i = 0; i < 20; i += 1) {
    pingPong.call.write({ payload: payload(10, i) });
    await pingPong.answered(payload(10, i), i + 1, 10 * (i + 1));
  }
  pingPong.call.end();
  await pingPong.endsWell();
  const atOnce = new Watched(client.echo.BidiStream());
  for (let i = 0; i < 20; i += 1) atOnce.call.write({ payload: payload(10, i) });
  atOnce.call.end();
  for (let i = 0; i < 20; i += 1) await atOnce.answered(payload(10, i), i + 1, 10 * (i + 1));
  await atOnce.endsWell();
  return '20 + 20 messages';
}

async function metadata(client, facts) {
  const sent = new Metadata();
  for (const prefix of ['x-echo-', 'x-echo-trailer-']) {
    for (const [name, values] of metadataSet(prefix)) values.forEach((value) => sent.add(name, value));
  }
  const { headers, status } = await good(client, {}, { metadata: sent });
  facts.headers = visible(headers);
  facts.trailers = visible(status.metadata);
  carries('header', headers, 'x-echo-');
  carries('trailer', status.metadata, 'x-echo-trailer-');
  const stream = new Watched(client.echo.BidiStream(sent));
  stream.call.write({});
  await stream.answered(Buffer.alloc(0), 1, 0);
  stream.call.end();
  await stream.endsWell();
  carries('header', stream.headers, 'x-echo-');
  carries('trailer', stream.status.metadata, 'x-echo-trailer-');
  return 'unary and bidi';
}

async function deadline(client) {
  const { message } = await good(client, {}, { options: { deadline: Date.now() + 60_000 } });
  if (!(message.deadline_ms >= 50_000 && message.deadline_ms <= 61_000)) {
    throw new Error(`deadline_ms: got ${message.deadline_ms}, want about 60000`);
  }
  const request = { delay_ms: 5000, response_count: 2 };
  const { status } = await single(client, 'Unary', { request, options: soon() });
  same('status', status.code, codes.DEADLINE_EXCEEDED);
  const stream = new Watched(client.echo.ServerStream(request, soon()));
  same('status', (await stream.ended).code, codes.DEADLINE_EXCEEDED);
  same('answers', stream.messages.length, 0);
  await worksOn(client);
  return '60 s seen; DEADLINE_EXCEEDED twice';
}

async function cancel(client) {
  for (const kind of [{ delay_ms: 20 }, { response_size: 1000 }]) {
    const stream = new Watched(client.echo.ServerStream({ response_count: 100_000, ...kind }));
    for (let i = 0; i < 3; i += 1) {
      const message = await stream.next();
      podIs(stream.headers, message);
    }
    stream.call.cancel();
    same('status', (await stream.ended).code, codes.CANCELLED);
    await worksOn(client);
  }
  const stream = new Watched(client.echo.BidiStream());
  for (let i = 0; i < 3; i += 1) {
    stream.call.write({});
    await stream.answered(Buffer.alloc(0), i + 1, 0);
  }
  stream.call.cancel();
  same('status', (await stream.ended).code, codes.CANCELLED);
  await worksOn(client);
  return 'CANCELLED three times';
}

async function error_details(client, facts) {
  for (let n = 1; n <= 300; n += 1) {
    const code = 1 + (n % 16);
    const request = { fail_code: code, fail_message: UNICODE_MESSAGE, fail_details: details(n) };
    const { status } = await single(client, 'Unary', { request });
    failedWith(status, code, UNICODE_MESSAGE);
    ended(status.metadata);
    const got = status.metadata.get('grpc-status-details-bin');
    same('grpc-status-details-bin: values', got.length, 1);
    same('grpc-status-details-bin', got[0], details(n));
    facts.trailers = visible(status.metadata);
  }
  return '300 failures';
}

async function error_trailers_only(client, facts) {
  const identity = (x) => x;
  const unknown = await new Promise((resolve) => {
    client.echo.makeUnaryRequest('/sluice.loadtest.v1.Echo/NoSuchMethod', identity, identity, Buffer.alloc(0), resolve);
  });
  same('status', unknown?.code, codes.UNIMPLEMENTED);
  const { message, headers, status } = await single(client, 'Unary', { request: { fail_code: 5, fail_message: 'no such thing' } });
  facts.headers = visible(headers);
  facts.trailers = visible(status.metadata);
  same('message', message, undefined);
  failedWith(status, codes.NOT_FOUND, 'no such thing');
  ended(status.metadata);
  return 'UNIMPLEMENTED, NOT_FOUND';
}

async function error_after_messages(client, facts) {
  const request = { response_count: 5, fail_code: 9, fail_message: UNICODE_MESSAGE, fail_details: details(40) };
  const stream = new Watched(client.echo.ServerStream(request));
  const status = await stream.ended;
  same('answers', stream.messages.length, 5);
  failedWith(status, codes.FAILED_PRECONDITION, UNICODE_MESSAGE);
  ended(status.metadata);
  facts.trailers = visible(status.metadata);
  same('grpc-status-details-bin', status.metadata.get('grpc-status-details-bin')[0], details(40));
  const both = new Watched(client.echo.BidiStream());
  for (let i = 0; i < 3; i += 1) {
    both.call.write({ payload: payload(10, i) });
    await both.answered(payload(10, i), i + 1, 10 * (i + 1));
  }
  both.call.write({ fail_code: 10, fail_message: 'enough' });
  failedWith(await both.ended, codes.ABORTED, 'enough');
  ended(both.status.metadata);
  return 'FAILED_PRECONDITION after 5, ABORTED after 3';
}

async function large(client) {
  const { message } = await good(client, { payload: payload(MIB, 3) });
  same('payload', message.payload, payload(MIB, 3));
  counts(message, 1, MIB);
  const stream = new Watched(client.echo.BidiStream());
  for (let i = 0; i < 4; i += 1) {
    stream.call.write({ payload: payload(MIB, i) });
    await stream.answered(payload(MIB, i), i + 1, (i + 1) * MIB);
  }
  stream.call.end();
  await stream.endsWell();
  return '1 + 4 MiB each way';
}

// call.getPeer() repeats the address that was dialled; the sockets' own word is getpeername(2).
// Node lists a socket only while a call keeps it busy, so an open stream is asked.
async function peer(client, facts) {
  const stream = new Watched(client.echo.BidiStream());
  stream.call.write({});
  const message = await stream.next();
  const sockets = process._getActiveHandles().filter((h) => h instanceof net.Socket && h.remotePort);
  const peers = new Set([...sockets.map((s) => joined(canonical(s.remoteAddress), s.remotePort)), stream.call.getPeer()]);
  stream.call.end();
  await stream.endsWell();
  facts.peer = [...peers].sort().join(' ');
  facts.source = ipOf(message.peer);
  if (client.expectPeer) {
    same('connected sockets', sockets.length, 1);
    same('peer', facts.peer, client.target);
  }
  if (client.expectSource) same('source', facts.source, canonical(client.expectSource));
  return 'seen';
}

module.exports = {
  unary, unary_spread, client_stream, server_stream, bidi, metadata, deadline, cancel, error_details, error_trailers_only, error_after_messages, large, peer,
};
