// Posts good and bad bodies over one pool of kept connections, and prints what became of the good ones as JSON.
//
// Usage: keep_alive_node.mjs URL SECRET GOOD_BYTES BAD_BYTES COUNT
import http from 'node:http';
import { randomUUID } from 'node:crypto';

const [url, secret] = process.argv.slice(2);
const [goodBytes, badBytes, count] = process.argv.slice(4).map(Number);
const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
const json = { 'content-type': 'application/json' };
const known = { ...json, 'x-webhook-secret': secret };

function event(size) {
  const actionLog = { id: randomUUID(), type: 'SYSTEM_NOTE', status: 'COMPLETED', leadId: randomUUID() };
  const event = { event: 'action_log.completed', workspaceId: 'keep-alive', actionLog, padding: '' };
  event.padding = 'x'.repeat(size - JSON.stringify(event).length);
  return JSON.stringify(event);
}

function send(method, url, headers, body) {
  return new Promise((resolve) => {
    const request = http.request(url, { method, agent, headers: { ...headers, 'content-length': Buffer.byteLength(body) } }, (answer) => {
      let text = '';
      answer.setEncoding('utf8');
      answer.on('data', (part) => (text += part));
      answer.on('end', () => resolve({ status: String(answer.statusCode), text }));
      answer.on('error', (error) => resolve({ status: String(error), text: '' }));
    });
    request.on('error', (error) => resolve({ status: String(error), text: '' }));
    request.end(body);
  });
}

const told = { taken: 0, lost: [], refused: {} };
let left = count;
let over = false;

async function good() {
  while (left-- > 0) {
    const { status, text } = await send('POST', url, known, event(goodBytes));
    if (status === '200') told.taken += 1;
    else told.lost.push(`${status} ${text.slice(0, 200)}`);
  }
}

async function bad() {
  const kinds = [
    ['POST', url, json],
    ['POST', `${url}/a/b`, known],
    ['PUT', url, known],
    ['POST', url, { ...known, 'content-type': 'text/plain' }],
  ];
  const body = event(badBytes);
  for (let at = 0; !over; at += 1) {
    const { status } = await send(...kinds[at % kinds.length], body);
    told.refused[status] = (told.refused[status] ?? 0) + 1;
  }
}

const senders = [bad(), bad()];
await Promise.all([good(), good()]);
over = true;
await Promise.all(senders);
agent.destroy();
console.log(JSON.stringify(told));
