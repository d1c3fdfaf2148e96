// A peer on the `ws` library: reads commands as lines of JSON on standard input, and writes events as lines of JSON.
//
//   {"open": URL, "protocols": […], "options": {…}}   {"send": TEXT}   {"ping": TEXT}   {"close": CODE, "reason": TEXT}
//   → {"opened": PROTOCOL, "extensions": …}  {"got": TEXT, "binary": false}  {"pong": TEXT}  {"pinged": true}
//     {"refused": STATUS, "reason": X-RELAY-REASON, "body": …}  {"closed": CODE, "reason": TEXT}  {"failed": TEXT}

import { createInterface } from 'node:readline';
import WebSocket from 'ws';

let socket;
const say = (what) => process.stdout.write(JSON.stringify(what) + '\n');

function open({ open: url, protocols, options }) {
  socket = new WebSocket(url, protocols ?? [], options ?? {});
  socket.on('open', () => say({ opened: socket.protocol, extensions: socket.extensions }));
  socket.on('message', (data, binary) => say({ got: data.toString(), binary }));
  socket.on('ping', () => say({ pinged: true }));
  socket.on('pong', (data) => say({ pong: data.toString() }));
  socket.on('close', (code, reason) => say({ closed: code, reason: reason.toString() }));
  socket.on('error', (error) => say({ failed: error.message }));
  socket.on('unexpected-response', (request, response) => {
    let body = '';
    response.on('data', (piece) => (body += piece));
    response.on('end', () =>
      say({ refused: response.statusCode, reason: response.headers['x-relay-reason'], body }),
    );
  });
}

for await (const line of createInterface({ input: process.stdin })) {
  const told = JSON.parse(line);
  if (told.open) open(told);
  else if ('send' in told) socket.send(told.send);
  else if ('ping' in told) socket.ping(told.ping);
  else if ('close' in told) socket.close(told.close, told.reason);
}
process.exit(0);
