// Sign in, then keep the page alive while it is visible.

import { get, post, signedIn, signIn, signOut, SignedOut } from "./api.js";
import { Connections } from "./connections.js";
import { byId, confirmed, toast } from "./dom.js";
import { showFleet } from "./fleet.js";
import { Log } from "./log.js";
import { Numbers } from "./numbers.js";
import { Settings } from "./settings.js";
import { Workspaces } from "./workspaces.js";

const EVERY = 2000; // milliseconds between looks at the numbers; workspaces every second look

const log = new Log(() => look());
const numbers = new Numbers((reason) => log.only(reason));
const workspaces = new Workspaces();
const connections = new Connections();
new Settings();
let running = false;
let looking = false;
let timer = 0;
let looks = 0;
let wasLost = false;

function gate(message = "") {
  running = false;
  clearTimeout(timer);
  log.close();
  byId("board").hidden = true;
  byId("sign-out").hidden = true;
  byId("gate").hidden = false;
  byId("who").textContent = "";
  byId("token-error").textContent = message;
  byId("token").focus();
}

async function board() {
  byId("gate").hidden = true;
  byId("token").value = "";
  byId("board").hidden = false;
  byId("sign-out").hidden = false;
  running = true;
  try {
    const [{ reasons }, history] = await Promise.all([get("api/reasons"), get("api/history")]);
    numbers.explain(reasons);
    numbers.history(history);
    log.explain(reasons);
  } catch (error) {
    failed(error);
  }
  if (!running) return;
  log.open();
  await look();
}

function failed(error) {
  if (error instanceof SignedOut) gate("The session is over. Sign in again.");
  else {
    wasLost = true;
    numbers.lost();
  }
}

async function look() {
  clearTimeout(timer);
  if (!running || looking || document.hidden) return;
  looking = true;
  try {
    const overview = await get("api/overview");
    if (wasLost) numbers.history(await get("api/history")); // it may be another process now
    wasLost = false;
    numbers.show(overview);
    showFleet(overview.relays);
    if (looks % 2 === 0) await Promise.all([workspaces.refresh(), connections.refresh()]);
    looks += 1;
    if (log.source?.readyState === EventSource.CLOSED) log.open();
  } catch (error) {
    failed(error);
  }
  looking = false;
  if (running) timer = setTimeout(look, EVERY);
}

byId("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = byId("token");
  byId("token-error").textContent = "";
  try {
    if (await signIn(field.value)) await board();
    else gate("That is not this relay's admin token.");
  } catch (error) {
    gate(`Cannot sign in: ${error.message}`);
  }
  field.select();
});

byId("sign-out").addEventListener("click", async () => {
  try {
    await signOut();
    gate();
  } catch (error) {
    failed(error);
  }
});

byId("flush").addEventListener("click", async () => {
  const question = "Forget the platform's answers, and fetch the key set again? Each peer that connects next is checked anew. "
    + "Peers that are connected stay.";
  if (!(await confirmed(question, "Forget"))) return;
  try {
    await post("/cache/flush", {});
    toast("Forgotten: the next peer is checked anew.");
    looks = 0;
    await look();
  } catch (error) {
    toast(`Not done: ${error.message}`);
  }
});

document.addEventListener("visibilitychange", () => look());

try {
  if (await signedIn()) await board();
  else gate();
} catch {
  gate("The relay does not answer.");
}
