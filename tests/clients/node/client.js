// Drives @grpc/grpc-js with default settings through the scenarios of ../README.md.
// In: the command line; $ECHO_PROTO, the path of echo.proto. Out: one JSON line per scenario, exit status. It knows nothing of sluice.
'use strict';

const { isIP } = require('node:net');
const { parseArgs } = require('node:util');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');
const scenarios = require('./scenarios');

function usage(error) {
  console.error(`${error}\nusage: node [--expect-peer] [--expect-source IP] IP:PORT [SCENARIO…]`);
  process.exit(2);
}

function commandLine() {
  const options = { 'expect-peer': { type: 'boolean' }, 'expect-source': { type: 'string' } };
  try {
    const { values, positionals } = parseArgs({ options, allowPositionals: true });
    return { expectPeer: values['expect-peer'], expectSource: values['expect-source'], target: positionals[0], names: positionals.slice(1) };
  } catch (error) {
    return usage(error.message);
  }
}

async function main() {
  const { target, names, ...expected } = commandLine();
  if (!target || !isIP(target.replace(/:\d+$/, '').replace(/^\[|\]$/g, ''))) usage(`no target: ${target}`);
  for (const name of names) {
    if (!(name in scenarios)) usage(`no scenario ${name}; README.md beside the clients lists them`);
  }
  const definition = protoLoader.loadSync(process.env.ECHO_PROTO, { keepCase: true, longs: Number, defaults: true });
  const { Echo } = grpc.loadPackageDefinition(definition).sluice.loadtest.v1;
  const client = { echo: new Echo(target, grpc.credentials.createInsecure()), target, ...expected };
  for (const name of names.length ? names : Object.keys(scenarios)) {
    const facts = {};
    let ok = true;
    let detail;
    try {
      detail = await scenarios[name](client, facts);
    } catch (error) {
      [ok, detail, process.exitCode] = [false, String(error).slice(0, 600), 1];
    }
    console.log(JSON.stringify({ client: 'node', scenario: name, ok, detail, ...facts }));
  }
  process.exit(); // a failed scenario may have left a call open
}

main();
