// Frames that a client and a daemon may send, parsed with one JSON.parse, by the rules of Viewport relay.

const PROFILES = new Set(["noise-ik", "noise-ikpsk2"]);
const CHANNEL = "agent-session:";

const text = (value) => typeof value === "string";
const filled = (value) => typeof value === "string" && value.trim() !== "";
const from = (value, least) => Number.isInteger(value) && value >= least;
const channel = (value) => text(value) && value.trim().startsWith(CHANNEL) && value.trim() !== CHANNEL;
const all = (frame, test, names) => names.every((name) => test(frame[name]));

const PAIRING_OFFER = ["daemonChannelPublicKey", "encIv", "encTag", "encCiphertext"];

function isE2ee(frame) {
  return (
    frame.version === 2 &&
    PROFILES.has(frame.profile) &&
    filled(frame.sessionId) &&
    from(frame.epoch, 1) &&
    from(frame.seq, 1) &&
    filled(frame.iv) &&
    filled(frame.tag) &&
    filled(frame.ciphertext)
  );
}

function isInit(frame) {
  const members =
    frame.version === 3
      ? ["requestId", "clientEphemeralPublicKey", "encryptedClientStatic"]
      : frame.version === 2
        ? ["requestId", "clientPublicKey", "clientNonce", "clientProof"]
        : null;
  if (!members || !PROFILES.has(frame.profile) || !all(frame, text, members)) return false;
  if (frame.profile === "noise-ikpsk2" && !filled(frame.pairingPeerId)) return false;
  return !("previousSessionId" in frame) || text(frame.previousSessionId);
}

function isResponse(frame) {
  const members =
    frame.version === 3
      ? ["daemonPublicKey", "daemonEphemeralPublicKey", "encryptedMetadata", "proof"]
      : frame.version === 2
        ? ["daemonNonce", "proof"]
        : null;
  if (!members || !PROFILES.has(frame.profile) || !all(frame, text, members)) return false;
  if (!filled(frame.requestId) || !filled(frame.sessionId)) return false;
  return frame.version === 3 ? from(frame.epoch, 1) : typeof frame.epoch === "number";
}

function isPresence(frame) {
  return (
    channel(frame.channel) &&
    ["joined", "left", "heartbeat"].includes(frame.action) &&
    filled(frame.userId) &&
    frame.userId.length <= 128 &&
    (!("displayName" in frame) || (text(frame.displayName) && frame.displayName.length <= 255)) &&
    (!("sentAt" in frame) || text(frame.sentAt))
  );
}

function isPairingAnswer(frame) {
  return typeof frame.ok === "boolean" && filled(frame.requestId) && (frame.ok || filled(frame.errorCode));
}

const CLIENT = {
  e2ee: isE2ee,
  relay_key_exchange_init: isInit,
  relay_pairing_offer_request: (f) =>
    all(f, filled, ["requestId", "clientChannelPublicKey"]) &&
    (!("ttlSeconds" in f) || (from(f.ttlSeconds, 30) && f.ttlSeconds <= 3600)),
  relay_pairing_redeem_request: (f) =>
    all(f, filled, ["requestId", "offerId", "encIv", "encTag", "encCiphertext"]),
  "viewport.session_events.subscribe/v1": (f) =>
    channel(f.channel) && (!("afterSequence" in f) || from(f.afterSequence, 0)),
  "viewport.session_events.unsubscribe/v1": (f) => channel(f.channel),
  "viewport.session_viewer_presence/v1": isPresence,
};

const DAEMON = {
  e2ee: isE2ee,
  relay_key_exchange_response: isResponse,
  relay_key_update_required: (f) => filled(f.sessionId) && typeof f.nextEpoch === "number",
  relay_pairing_offer_response: (f) => isPairingAnswer(f) && (!f.ok || all(f, filled, PAIRING_OFFER)),
  relay_pairing_redeem_response: isPairingAnswer,
};

const RULES = { client: new Map(Object.entries(CLIENT)), "workspace-daemon": new Map(Object.entries(DAEMON)) };

/** The frame of a message (a Buffer in UTF-8), or null if the role may not send it. */
export function decode(role, message) {
  let frame;
  try {
    frame = JSON.parse(message.toString());
  } catch {
    return null;
  }
  if (typeof frame !== "object" || frame === null) return null;
  const rule = RULES[role].get(frame.type);
  return rule !== undefined && rule(frame) ? frame : null;
}
