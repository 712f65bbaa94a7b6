// What the scenarios share: calls as promises, patterned payloads, what every response owes its client, metadata sets.
// In: what a call returned. Out: nothing, or an error that names the expectation that failed.
'use strict';

const net = require('node:net');
const { Metadata } = require('@grpc/grpc-js');

const UNICODE_MESSAGE = '100 % – Zürich, 東京, 🚀\r\n\ttab "quoted"';

const filled = (n, byte) => Buffer.from(Uint8Array.from({ length: n }, (_, i) => byte(i)));

const payload = (n, seed) => filled(n, (i) => (31 * i + seed) % 251);

// Begins with an illegal protobuf tag: clients that try to read a google.rpc.Status leave it alone.
function details(n) {
  const bytes = payload(n, 0);
  bytes[0] = 0;
  return bytes;
}

const shown = (value) => (Buffer.isBuffer(value) ? `${value.length} bytes ${value.toString('hex', 0, 64)}` : JSON.stringify(value)).slice(0, 200);

function same(what, got, want) {
  const equal = Buffer.isBuffer(want) ? want.equals(got) : JSON.stringify(got) === JSON.stringify(want);
  if (!equal) throw new Error(`${what}: got ${shown(got)}, want ${shown(want)}`);
}

// The message names the pod that the header names.
function podIs(headers, message) {
  if (!message.pod) throw new Error('the message names no pod');
  same('header x-sluice-pod', headers.get('x-sluice-pod'), [message.pod]);
}

const ended = (trailers) => same('trailer x-sluice-trailer', trailers.get('x-sluice-trailer'), ['end']);

function counts(message, messages, size) {
  same('received_messages', message.received_messages, messages);
  same('received_bytes', message.received_bytes, size);
}

function failedWith(status, code, text) {
  same('status', status.code, code);
  same('status message', status.details, text);
}

// Watches any kind of call: its headers, its end, and for streams its messages one by one.
class Watched {
  constructor(call) {
    this.call = call;
    this.headers = new Metadata();
    call.on('metadata', (headers) => { this.headers = headers; });
    this.ended = new Promise((resolve) => { call.on('status', resolve); });
    call.on('error', () => {}); // the same end comes as 'status'
    this.messages = [];
    this.wake = () => {};
    if (typeof call.read === 'function') {
      call.on('data', (message) => { this.messages.push(message); this.wake(); });
    }
    this.ended.then((status) => { this.status = status; this.wake(); });
  }

  // The next message; undefined once the call has ended and all messages are taken.
  async next() {
    while (this.messages.length === 0 && !this.status) {
      await new Promise((resolve) => { this.wake = resolve; });
    }
    return this.messages.shift();
  }

  async answered(want, messages, size) {
    const message = await this.next();
    if (!message) throw new Error(`the call ended early: ${this.status.code} ${this.status.details}`);
    same('payload', message.payload, want);
    counts(message, messages, size);
    podIs(this.headers, message);
  }

  // Nothing more comes, and the end is a good one.
  async endsWell() {
    same('after the half-close', await this.next(), undefined);
    same('status', (await this.ended).code, 0);
    ended(this.status.metadata);
  }
}

// A call with one answer: { message, headers, status }, whatever its status.
async function single(client, method, { request, requests, metadata = new Metadata(), options = {} }) {
  let message;
  const answer = (_, m) => { message = m; };
  const call = requests ? client.echo[method](metadata, options, answer) : client.echo[method](request, metadata, options, answer);
  const watched = new Watched(call);
  for (const r of requests ?? []) call.write(r);
  if (requests) call.end();
  const status = await watched.ended;
  await new Promise(setImmediate); // the callback with the message follows the status
  return { message, headers: watched.headers, status };
}

// A unary call, with what every good response owes.
async function good(client, request, more = {}) {
  const result = await single(client, 'Unary', { request, ...more });
  if (result.status.code !== 0) throw new Error(`status: got ${result.status.code} ${result.status.details}, want 0`);
  podIs(result.headers, result.message);
  ended(result.status.metadata);
  return result;
}

// After a cancelled or expired call the channel takes the next ones.
async function worksOn(client) {
  for (let i = 0; i < 3; i += 1) await good(client, {});
}

// Metadata for comparison between runs: sorted by name, `-bin` in hex, without what differs by time, pod or address.
function visible(metadata) {
  const hidden = ['date', 'x-sluice-pod', 'x-sluice-endpoint'];
  const text = (v) => (Buffer.isBuffer(v) ? v.toString('hex') : v);
  const names = Object.keys(metadata.toJSON()).filter((name) => !hidden.includes(name)).sort();
  return names.flatMap((name) => metadata.get(name).map((v) => [name, text(v)]));
}

// What the metadata scenario sends under a prefix: [name, values].
function metadataSet(prefix) {
  const ascii = String.fromCharCode(...Array.from({ length: 0x7f - 0x21 }, (_, i) => 0x21 + i));
  return [
    ['all-bin', [filled(256, (i) => i)]],
    ['ascii', [`${ascii} end`]],
    ['dup', ['1', '2', '3']],
    ['dup-bin', [Buffer.from([0]), Buffer.from([0xff, 0xfe])]],
    ['empty', ['']],
    ['empty-bin', [Buffer.alloc(0)]],
  ].map(([name, values]) => [prefix + name, values]);
}

// The metadata holds the whole set of one prefix, and nothing of it beyond. Node's http2 hands
// repeated headers over joined by a comma, and grpc-js takes only `-bin` ones apart again.
function carries(what, metadata, prefix) {
  for (const [name, values] of metadataSet(prefix)) {
    const got = metadata.get(name);
    if (name.endsWith('-bin')) {
      same(`${what} ${name}`, got.map(shown), values.map(shown));
      got.forEach((v, i) => same(`${what} ${name}`, v, values[i]));
    } else {
      same(`${what} ${name}`, got.join(', '), values.join(', '));
    }
  }
  const echoed = Object.keys(metadata.toJSON()).filter((name) => name.startsWith('x-echo-'));
  same(`${what}: names that begin with x-echo-`, echoed.length, metadataSet(prefix).length);
}

// `ip:port`, `[ip]:port` → the ip in one spelling, a v4-mapped one as plain v4.
function ipOf(address) {
  const ip = address.replace(/:\d+$/, '').replace(/^\[|\]$/g, '');
  return canonical(ip);
}

function canonical(ip) {
  const plain = ip.replace(/^::ffff:(?=\d+\.)/i, '');
  return new net.SocketAddress({ address: plain, family: net.isIPv6(plain) ? 'ipv6' : 'ipv4' }).address;
}

const joined = (ip, port) => (net.isIPv6(ip) ? `[${ip}]:${port}` : `${ip}:${port}`);

module.exports = {
  UNICODE_MESSAGE, Watched, canonical, carries, counts, details, ended, failedWith, good, ipOf, joined, metadataSet, payload, podIs, same, single, visible, worksOn,
};
