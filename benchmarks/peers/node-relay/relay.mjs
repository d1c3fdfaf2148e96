// A straightforward relay for the same wire protocol on Node and ws, for comparison with Viewport relay.
//
// It does the same work for a connection and for a frame (limits, JWT, validation with a cache, one JSON.parse,
// profile, session and request tables, bounded queues, heartbeat, counters, a log line for each join and leave). It
// has no worker transport, no session events, no Noise link, no backplane and no admin API.
//
//     node relay.mjs        with the RELAY_… variables that Viewport relay takes

import { randomBytes } from "node:crypto";
import fs from "node:fs";
import http from "node:http";
import https from "node:https";
import { WebSocketServer } from "ws";
import { Gate, Refusal } from "./admission.mjs";
import { decode } from "./frames.mjs";

const number = (name, fallback) => Number(process.env[name] ?? fallback);
const settings = {
  port: number("RELAY_LISTEN_PORT", 7781),
  jwksUrl: process.env.RELAY_JWKS_URL,
  validateUrl: process.env.RELAY_VALIDATE_URL,
  internalKey: process.env.RELAY_INTERNAL_KEY,
  issuer: process.env.RELAY_TOKEN_ISSUER ?? "viewport-server",
  audience: process.env.RELAY_TOKEN_AUDIENCE ?? "viewport-relay",
  cacheTtl: number("RELAY_VALIDATE_CACHE_TTL", 10),
  attempts: number("RELAY_RATE_LIMIT_PER_IP", 120),
  maxTotal: number("RELAY_MAX_TOTAL_CONNECTIONS", 2000),
  maxPerIp: number("RELAY_MAX_CONNECTIONS_PER_IP", 50),
  maxClients: number("RELAY_MAX_CLIENTS_PER_WORKSPACE", 100),
  frameMax: number("RELAY_FRAME_MAX_BYTES", 1_048_576),
  maxPending: number("RELAY_MAX_PENDING_BYTES", 4_194_304),
  kexRate: number("RELAY_KEX_INIT_RATE_PER_MINUTE", 60),
  pairingRate: number("RELAY_PAIRING_RATE_PER_MINUTE", 30),
  runtimeRate: number("RELAY_RUNTIME_RATE_PER_MINUTE", 240),
  workspaceRate: number("RELAY_RUNTIME_RATE_PER_MINUTE_WORKSPACE", 1200),
  daemonRate: number("RELAY_DAEMON_RUNTIME_RATE_PER_MINUTE", 2400),
  pingInterval: number("RELAY_PING_INTERVAL_MS", 30_000),
  pongTimeout: number("RELAY_PONG_TIMEOUT_MS", 10_000),
  idleTimeout: number("RELAY_IDLE_TIMEOUT_MS", 300_000),
};
const HIGH_WATER = 65_536;
const REQUEST_TTL = 120_000;
const SESSION_TTL = 1_800_000;
const REQUESTS_MAX = 2048;
const SESSIONS_MAX = 4096;
const STRENGTH = { "noise-ik": 1, "noise-ikpsk2": 2 };
const TEXT = { binary: false };

const counters = {
  opened: 0, closed: 0, refused: 0, framesUp: 0, bytesUp: 0, framesDown: 0, bytesDown: 0, rejected: 0, dropped: 0,
};
const gate = new Gate(settings);
const targets = new Map();
const perIp = new Map();
const clientsOf = new Map();
const peers = new Set();
let total = 0;

const log = (event, details) =>
  process.stdout.write(JSON.stringify({ ts: new Date().toISOString(), level: "info", event, ...details }) + "\n");
const more = (map, key, by) => map.set(key, (map.get(key) ?? 0) + by);
const less = (map, key) => (map.get(key) > 1 ? map.set(key, map.get(key) - 1) : map.delete(key));

// -- limits -------------------------------------------------------------------------------------------------

class Window {
  start = 0;
  count = 0;

  hit(now, limit) {
    if (limit <= 0) return true;
    if (now - this.start >= 60_000) {
      this.start = now;
      this.count = 0;
    }
    if (this.count >= limit) return false;
    this.count += 1;
    return true;
  }
}

const windows = new Map();
function window(...key) {
  const name = key.join(" ");
  let found = windows.get(name);
  if (found === undefined) windows.set(name, (found = new Window()));
  return found;
}

// -- targets ------------------------------------------------------------------------------------------------

class Target {
  daemon = null;
  clients = new Set();
  keyExchanges = new Map();
  pairings = new Map();
  sessions = new Map();
  frames = 0;
  bytes = 0;
  activeAt = 0;
}

function record(table, id, owner, now) {
  const found = table.get(id);
  if (found !== undefined && found.owner !== owner && now < found.until) return false;
  table.delete(id);
  table.set(id, { owner, until: now + REQUEST_TTL });
  if (table.size > REQUESTS_MAX) table.delete(table.keys().next().value);
  return true;
}

function spend(table, id, now) {
  const found = table.get(id);
  table.delete(id);
  return found !== undefined && now < found.until ? found.owner : null;
}

function ownerOf(target, sessionId, now) {
  const session = target.sessions.get(sessionId);
  if (session === undefined || now >= session.usedAt + SESSION_TTL) return null;
  session.usedAt = now;
  return session.owner;
}

function ownSession(target, sessionId, owner, now) {
  const found = target.sessions.get(sessionId);
  if (found !== undefined && found.owner !== owner && now < found.usedAt + SESSION_TTL) return false;
  if (found === undefined && target.sessions.size >= SESSIONS_MAX) {
    target.sessions.delete(target.sessions.keys().next().value);
  }
  target.sessions.set(sessionId, { owner, usedAt: now });
  return true;
}

// -- sending ------------------------------------------------------------------------------------------------

const say = (peer, frame) => peer.ws.send(JSON.stringify(frame));
const status = (peer, code, message, extra) =>
  say(peer, { type: "relay_status", code, message, workspaceId: peer.query.workspaceId, ...extra });

function end(peer, text) {
  log("close", { reason: text, connectionId: peer.id });
  leave(peer);
  peer.ws.close(4008, text);
}

function toClient(peer, message) {
  if (peer.ws.bufferedAmount >= settings.maxPending) {
    end(peer, "buffer overflow");
    return false;
  }
  peer.ws.send(message, TEXT);
  return true;
}

/** Back-pressure: a daemon with a full queue pauses the client that sends to it. */
function toDaemon(daemon, feeder, message) {
  daemon.ws.send(message, TEXT);
  if (daemon.ws.bufferedAmount > HIGH_WATER) {
    daemon.feeders.add(feeder);
    feeder.ws.pause();
  }
}

function drained(daemon) {
  for (const feeder of daemon.feeders) feeder.ws.resume();
  daemon.feeders.clear();
}

// -- frames --------------------------------------------------------------------------------------------------

function fromClient(peer, message, now) {
  const frame = decode("client", message);
  const target = peer.target;
  if (frame === null) {
    counters.rejected += 1;
    status(peer, "INVALID_FRAME", "client frame must be a valid runtime or pairing control frame");
    return;
  }
  if (frame.profile !== undefined && peer.required !== null && frame.profile !== peer.required) {
    end(peer, "client frame profile mismatch");
    return;
  }
  const daemon = target.daemon;
  switch (frame.type) {
    case "e2ee": {
      if (peer.scope !== "runtime") return end(peer, "pairing scope only");
      if (!peer.rates.runtime.hit(now, settings.runtimeRate) || !peer.rates.workspace.hit(now, settings.workspaceRate)) {
        return end(peer, "runtime rate limit exceeded");
      }
      const owner = ownerOf(target, frame.sessionId, now);
      if (owner !== null && owner !== peer) {
        counters.dropped += 1;
        return;
      }
      break;
    }
    case "relay_key_exchange_init":
      if (peer.scope !== "runtime") return end(peer, "pairing scope only");
      if (!peer.rates.kex.hit(now, settings.kexRate)) return end(peer, "key exchange rate limit exceeded");
      if (daemon !== null && !record(target.keyExchanges, frame.requestId.trim(), peer, now)) return;
      break;
    case "relay_pairing_offer_request":
    case "relay_pairing_redeem_request":
      if (peer.scope !== "pairing") return end(peer, "runtime scope only");
      if (!peer.rates.pairing.hit(now, settings.pairingRate)) return end(peer, "pairing rate limit exceeded");
      if (daemon !== null && !record(target.pairings, frame.requestId.trim(), peer, now)) return;
      break;
    default:
      return end(peer, "session-events scope required");
  }
  if (daemon === null) {
    status(peer, "DAEMON_UNAVAILABLE", "No machine runtime is connected for this runtime target", { retryable: true });
    return;
  }
  counters.framesUp += 1;
  counters.bytesUp += message.length;
  target.frames += 1;
  target.bytes += message.length;
  target.activeAt = now;
  toDaemon(daemon, peer, message);
}

function receiver(target, frame, now) {
  switch (frame.type) {
    case "e2ee":
    case "relay_key_update_required":
      return ownerOf(target, frame.sessionId, now);
    case "relay_key_exchange_response": {
      const owner = spend(target.keyExchanges, frame.requestId.trim(), now);
      return owner !== null && ownSession(target, frame.sessionId, owner, now) ? owner : null;
    }
    default:
      return spend(target.pairings, frame.requestId.trim(), now);
  }
}

function fromDaemon(peer, message, now) {
  if (!peer.rates.daemon.hit(now, settings.daemonRate)) return end(peer, "daemon rate limit exceeded");
  const frame = decode("workspace-daemon", message);
  const target = peer.target;
  if (frame === null || target.daemon !== peer) {
    counters.dropped += 1;
    return;
  }
  if (frame.profile !== undefined && peer.required !== null && STRENGTH[frame.profile] < STRENGTH[peer.required]) {
    end(peer, "daemon frame profile mismatch");
    return;
  }
  const owner = receiver(target, frame, now);
  if (owner === null) {
    counters.dropped += 1;
    return;
  }
  if (!toClient(owner, message)) return;
  counters.framesDown += 1;
  counters.bytesDown += message.length;
  target.frames += 1;
  target.bytes += message.length;
  target.activeAt = now;
}

// -- connections ---------------------------------------------------------------------------------------------

function join(ws, id, ip, query, claims, release) {
  const { workspaceId, role } = query;
  const runtimeTargetId = query.runtimeTargetId ?? claims.runtimeTargetId;
  const close = (text) => {
    release();
    ws.close(4008, text);
  };
  if (claims.workspaceId === undefined) return close("missing workspace claim");
  if (claims.workspaceId !== workspaceId) return close("workspace claim mismatch");
  if (runtimeTargetId === undefined) return close("missing runtime target claim");
  if (claims.runtimeTargetId !== runtimeTargetId) return close("runtime target claim mismatch");
  if (role === "client" && claims.scope === undefined) return close("invalid scope claim");
  const name = `${workspaceId} ${runtimeTargetId}`;
  let target = targets.get(name);
  if (target === undefined) targets.set(name, (target = new Target()));
  const now = Date.now();
  target.activeAt = now;
  const clientId = claims.clientId ?? id;
  const peer = {
    ws, id, ip, query, target, release, role,
    scope: claims.scope,
    required: claims.policyMode === "crypto_pairing" ? "noise-ikpsk2" : (claims.e2eeProfile ?? null),
    rates: {
      kex: window("kex", workspaceId, clientId, ip),
      pairing: window("pairing", workspaceId, clientId, ip),
      runtime: window("runtime", workspaceId, clientId, ip),
      workspace: window("workspace", workspaceId),
      daemon: window("daemon", name),
    },
    feeders: new Set(),
    lastSeen: now,
    pingedAt: now,
    unanswered: 0,
    gone: false,
    about: { role, workspaceId, runtimeTargetId, clientId, ip },
  };
  if (role === "client") {
    target.clients.add(peer);
  } else {
    if (target.daemon !== null) return close("daemon already connected");
    target.daemon = peer;
    ws._socket.on("drain", () => drained(peer));
  }
  peers.add(peer);
  counters.opened += 1;
  log("join", { connectionId: id, ...peer.about });
  const receive = role === "client" ? fromClient : fromDaemon;
  ws.on("message", (message) => {
    if (peer.gone) return;
    peer.lastSeen = Date.now();
    receive(peer, message, peer.lastSeen);
  });
  ws.on("pong", () => (peer.lastSeen = Date.now()));
  ws.on("ping", () => (peer.lastSeen = Date.now()));
  ws.on("error", () => {});
  ws.on("close", (code) => {
    leave(peer, code);
    counters.closed += 1;
  });
}

function leave(peer, code) {
  if (peer.gone) return;
  peer.gone = true;
  peer.release();
  peers.delete(peer);
  const target = peer.target;
  target.activeAt = Date.now();
  if (target.daemon === peer) {
    target.daemon = null;
    target.keyExchanges.clear();
    target.pairings.clear();
    target.sessions.clear();
    drained(peer);
  } else {
    target.clients.delete(peer);
    for (const table of [target.keyExchanges, target.pairings, target.sessions]) {
      for (const [id, entry] of table) if (entry.owner === peer) table.delete(id);
    }
  }
  log("leave", { connectionId: peer.id, ...peer.about, closeCode: code });
}

setInterval(() => {
  const now = Date.now();
  for (const peer of peers) {
    if (peer.unanswered && peer.lastSeen > peer.unanswered) peer.unanswered = 0;
    if (peer.unanswered && now - peer.unanswered >= settings.pongTimeout) peer.ws.terminate();
    else if (now - peer.lastSeen >= settings.idleTimeout) peer.ws.terminate();
    else if (now - peer.pingedAt >= settings.pingInterval) {
      peer.pingedAt = now;
      peer.unanswered ||= now;
      peer.ws.ping();
    }
  }
}, 1000);

setInterval(() => {
  const now = Date.now();
  for (const [name, target] of targets) {
    if (target.daemon === null && target.clients.size === 0 && now - target.activeAt > 120_000) targets.delete(name);
  }
  for (const [name, held] of windows) if (now - held.start > 120_000) windows.delete(name);
}, 30_000);

// -- upgrades -------------------------------------------------------------------------------------------------

const ID = /^[A-Za-z0-9._:-]{1,128}$/;

function readQuery(url) {
  const at = url.indexOf("?");
  if ((at < 0 ? url : url.slice(0, at)) !== "/ws") throw new Refusal("NOT_FOUND", 404);
  const parameters = new URLSearchParams(at < 0 ? "" : url.slice(at + 1));
  const role = parameters.get("role");
  const workspaceId = parameters.get("workspaceId");
  const runtimeTargetId = parameters.get("runtimeTargetId") ?? undefined;
  if (role !== "client" && role !== "workspace-daemon") throw new Refusal("QUERY_INVALID", 400);
  if (workspaceId === null || !ID.test(workspaceId)) throw new Refusal("QUERY_INVALID", 400);
  if (runtimeTargetId !== undefined && !ID.test(runtimeTargetId)) throw new Refusal("QUERY_INVALID", 400);
  return { role, workspaceId, runtimeTargetId };
}

function readToken(headers) {
  const bearer = /^bearer +(\S+)\s*$/i.exec(headers.authorization ?? "");
  if (bearer !== null && bearer[1].length >= 10 && bearer[1].length <= 4096) return bearer[1];
  const offered = (headers["sec-websocket-protocol"] ?? "").split(",").map((entry) => entry.trim());
  const entry = offered.find((word) => word.startsWith("auth.") && word.length >= 15 && word.length <= 4101);
  if (entry === undefined) throw new Refusal("TOKEN_MISSING", 401);
  return entry.slice(5);
}

const { RELAY_TLS_CERT_PATH: cert, RELAY_TLS_KEY_PATH: key } = process.env;
const created = cert
  ? (answer) => https.createServer({ cert: fs.readFileSync(cert), key: fs.readFileSync(key) }, answer)
  : (answer) => http.createServer(answer);
const server = created((request, response) => {
  response.end(request.url === "/health" ? '{"ok":true}' : JSON.stringify({ ...counters, peers: peers.size }));
});
const sockets = new WebSocketServer({
  noServer: true,
  maxPayload: settings.frameMax,
  perMessageDeflate: false,
  handleProtocols: (offered) => [...offered].find((entry) => !entry.startsWith("auth.")) ?? [...offered][0],
});

function place(ip, query) {
  if (settings.maxTotal > 0 && total >= settings.maxTotal) throw new Refusal("TOO_MANY_CONNECTIONS", 503);
  if (settings.maxPerIp > 0 && (perIp.get(ip) ?? 0) >= settings.maxPerIp) {
    throw new Refusal("TOO_MANY_CONNECTIONS_PER_IP", 429);
  }
  const room = query.role === "client" ? `${query.workspaceId} ${query.runtimeTargetId ?? ""}` : null;
  if (room !== null && settings.maxClients > 0 && (clientsOf.get(room) ?? 0) >= settings.maxClients) {
    throw new Refusal("TOO_MANY_CLIENTS", 429);
  }
  total += 1;
  more(perIp, ip, 1);
  if (room !== null) more(clientsOf, room, 1);
  let held = true;
  return () => {
    if (!held) return;
    held = false;
    total -= 1;
    less(perIp, ip);
    if (room !== null) less(clientsOf, room);
  };
}

server.on("upgrade", async (request, socket, head) => {
  const id = randomBytes(9).toString("hex");
  const ip = socket.remoteAddress ?? "unknown";
  let release = () => {};
  socket.on("error", () => {});
  try {
    if (!window("attempts", ip).hit(Date.now(), settings.attempts)) throw new Refusal("RATE_LIMIT_EXCEEDED", 429);
    const query = readQuery(request.url);
    const token = readToken(request.headers);
    release = place(ip, query);
    const claims = await gate.admit(token, query);
    if (socket.destroyed) {
      release();
      return;
    }
    sockets.handleUpgrade(request, socket, head, (ws) => join(ws, id, ip, query, claims, release));
  } catch (refusal) {
    release();
    if (!(refusal instanceof Refusal)) throw refusal;
    counters.refused += 1;
    log("refuse", { reason: refusal.code, connectionId: id, ip });
    const body = JSON.stringify({ ok: false, reason: refusal.code, connectionId: id });
    socket.end(
      `HTTP/1.1 ${refusal.status} ${http.STATUS_CODES[refusal.status]}\r\nX-Relay-Reason: ${refusal.code}\r\n` +
        `Content-Type: application/json\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`,
    );
  }
});

server.listen({ port: settings.port, host: "127.0.0.1", backlog: 1024 });
