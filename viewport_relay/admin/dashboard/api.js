// Talking to the relay: same origin only, the session is a cookie that this script cannot read.

let csrf = "";

export class SignedOut extends Error {}

async function ask(method, path, body) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (method !== "GET") headers["X-Relay-CSRF"] = csrf;
  const response = await fetch(path, {
    method, headers, credentials: "same-origin", cache: "no-store",
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.timeout(8000),
  });
  const answer = await response.json();
  if (response.status === 401) throw new SignedOut("signed out");
  if (!response.ok) throw new Error(answer.message || answer.reason || `HTTP ${response.status}`);
  return answer;
}

export const get = (path) => ask("GET", path);
export const post = (path, body) => ask("POST", path, body);

export async function signedIn() {
  const answer = await get("api/session");
  csrf = answer.csrf || "";
  return answer.signedIn;
}

// False when the token is not the right one.
export async function signIn(token) {
  try {
    csrf = (await post("api/session", { token })).csrf;
    return true;
  } catch (error) {
    if (error instanceof SignedOut) return false;
    throw error;
  }
}

export async function signOut() {
  await ask("DELETE", "api/session");
  csrf = "";
}
