// Admission: the token's signature by the JWKS, then the platform's validation, with a cache.

import { createHash, createPublicKey, verify } from "node:crypto";
import http from "node:http";

const SKEW = 30;
const CACHE_MAX = 4096;
const ANSWER_MAX = 262_144;
const agent = new http.Agent({ keepAlive: true, maxFreeSockets: 32 });

export class Refusal extends Error {
  constructor(code, status) {
    super(code);
    this.code = code;
    this.status = status;
  }
}

/** One request within `limitMs`: status and body, at most ANSWER_MAX bytes. */
function ask(url, options, body, limitMs) {
  return new Promise((resolve, reject) => {
    const request = http.request(url, { agent, ...options }, (response) => {
      const chunks = [];
      let size = 0;
      response.on("data", (chunk) => {
        size += chunk.length;
        if (size > ANSWER_MAX) request.destroy(new Error("too large"));
        else chunks.push(chunk);
      });
      response.on("end", () => {
        clearTimeout(timer);
        resolve({ status: response.statusCode, body: Buffer.concat(chunks).toString() });
      });
    });
    const timer = setTimeout(() => request.destroy(new Error("too slow")), limitMs);
    request.on("error", (error) => {
      clearTimeout(timer);
      reject(error);
    });
    request.end(body);
  });
}

export class Keys {
  constructor(url) {
    this.url = url;
    this.keys = null;
    this.fetching = null;
    this.next = 0;
  }

  async fetch() {
    this.fetching ??= ask(this.url, { method: "GET" }, undefined, 2000).finally(() => (this.fetching = null));
    const answer = await this.fetching;
    const found = new Map();
    for (const jwk of JSON.parse(answer.body).keys) {
      if (jwk.kty === "RSA") found.set(jwk.kid ?? "v1", createPublicKey({ key: jwk, format: "jwk" }));
    }
    this.keys = found;
    this.next = Date.now() + 30_000;
  }

  async find(kid) {
    if (this.keys === null || (!this.keys.has(kid) && Date.now() > this.next)) {
      try {
        await this.fetch();
      } catch {
        if (this.keys === null) throw new Refusal("JWKS_UNREACHABLE", 503);
      }
    }
    const key = this.keys.get(kid);
    if (key === undefined) throw new Refusal("JWT_SIGNATURE_MISMATCH", 401);
    return key;
  }
}

const TOKEN = /^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$/;
const part = (segment) => JSON.parse(Buffer.from(segment, "base64url").toString());

/** The token's exp, after signature, times, issuer, audience and binding were checked. */
async function checkToken(token, query, keys, settings) {
  if (!TOKEN.test(token)) throw new Refusal("JWT_MALFORMED", 401);
  const [head, payload, signature] = token.split(".");
  let header, claims;
  try {
    header = part(head);
    claims = part(payload);
  } catch {
    throw new Refusal("JWT_MALFORMED", 401);
  }
  if (header.alg !== "RS256") throw new Refusal("JWT_ALGORITHM_NOT_ALLOWED", 401);
  const key = await keys.find(header.kid ?? "v1");
  if (!verify("RSA-SHA256", Buffer.from(`${head}.${payload}`), key, Buffer.from(signature, "base64url"))) {
    throw new Refusal("JWT_SIGNATURE_MISMATCH", 401);
  }
  const now = Date.now() / 1000;
  if (typeof claims.exp !== "number" || now >= claims.exp + SKEW) throw new Refusal("JWT_EXPIRED", 401);
  for (const name of ["nbf", "iat"]) {
    if (name in claims && !(claims[name] <= now + SKEW)) throw new Refusal("JWT_NOT_YET_VALID", 401);
  }
  if (claims.iss !== settings.issuer) throw new Refusal("JWT_ISSUER_MISMATCH", 401);
  if (![claims.aud].flat().includes(settings.audience)) throw new Refusal("JWT_AUDIENCE_MISMATCH", 401);
  for (const name of ["role", "workspaceId", "runtimeTargetId"]) {
    if (query[name] !== undefined && name in claims && claims[name] !== query[name]) {
      throw new Refusal("JWT_CLAIM_MISMATCH", 401);
    }
  }
  return claims.exp;
}

const LENGTHS = {
  clientId: 128, userId: 128, installId: 128, runtimeTargetId: 128, machineId: 255, workspaceId: 128,
  managedExecutorId: 128, policyMode: 128, iss: 255, jti: 255,
};
const NUMBERS = ["iat", "exp", "nbf", "ver", "daemonIssueGeneration"];
const WORDS = {
  scope: ["runtime", "pairing", "session-events"],
  e2eeProfile: ["noise-ik", "noise-ikpsk2"],
};

function checkClaims(claims, query) {
  const wrong = (name) => new Refusal(`VALIDATION_RESPONSE_INVALID ${name}`, 502);
  for (const [name, most] of Object.entries(LENGTHS)) {
    const value = claims[name];
    if (name in claims && (typeof value !== "string" || value === "" || value.length > most)) throw wrong(name);
  }
  for (const name of NUMBERS) if (name in claims && !Number.isInteger(claims[name])) throw wrong(name);
  for (const [name, words] of Object.entries(WORDS)) {
    if (name in claims && !words.includes(claims[name])) throw wrong(name);
  }
  if ("role" in claims && claims.role !== query.role) throw wrong("role");
  return claims;
}

export class Gate {
  constructor(settings) {
    this.settings = settings;
    this.keys = new Keys(settings.jwksUrl);
    this.answers = new Map();
    this.validations = 0;
  }

  /** The platform's claims about a valid token; throws a Refusal. */
  async admit(token, query) {
    const expires = await checkToken(token, query, this.keys, this.settings);
    if (this.settings.cacheTtl === 0) return this.validate(token, query);
    const digest = createHash("sha256").update(token).digest("base64");
    const key = `${digest} ${query.role} ${query.workspaceId} ${query.runtimeTargetId ?? ""}`;
    const kept = this.answers.get(key);
    if (kept !== undefined && Date.now() < kept.until) return kept.answer;
    if (this.answers.size >= CACHE_MAX) this.answers.delete(this.answers.keys().next().value);
    const entry = { until: Infinity, answer: this.validate(token, query) };
    this.answers.set(key, entry);
    try {
      const claims = await entry.answer;
      entry.until = Math.min(Date.now() + this.settings.cacheTtl * 1000, expires * 1000);
      return claims;
    } catch (refusal) {
      this.answers.delete(key);
      throw refusal;
    }
  }

  async validate(token, query) {
    this.validations += 1;
    const question = { relayToken: token, role: query.role, workspaceId: query.workspaceId };
    if (query.runtimeTargetId !== undefined) question.runtimeTargetId = query.runtimeTargetId;
    const body = Buffer.from(JSON.stringify(question));
    const headers = {
      "content-type": "application/json",
      "content-length": body.length,
      "x-relay-internal-key": this.settings.internalKey,
    };
    let answer;
    try {
      answer = await ask(this.settings.validateUrl, { method: "POST", headers }, body, 2000);
    } catch {
      throw new Refusal("PLATFORM_UNREACHABLE", 503);
    }
    let said;
    try {
      said = JSON.parse(answer.body);
    } catch {
      throw new Refusal("VALIDATION_RESPONSE_INVALID", 502);
    }
    if (answer.status >= 500) throw new Refusal("PLATFORM_UNREACHABLE", 503);
    if (said.ok !== true || answer.status >= 300) throw new Refusal("VALIDATION_DENIED", 401);
    return checkClaims(said.claims, query);
  }
}
