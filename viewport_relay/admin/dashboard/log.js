// The tail of the log: a server-sent stream, filtered by the relay, newest first.

import { byId, clock, el, put, shown } from "./dom.js";

const KEEP = 400; // entries on the page
const BACKLOG = 200;

export class Log {
  constructor(onLost) {
    this.list = byId("log");
    this.onLost = onLost;
    this.source = null;
    this.waiting = [];
    this.paused = false;
    this.drawing = false;
    this.explained = {};
    let timer = 0;
    const again = () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.open(), 300);
    };
    byId("log-filter").addEventListener("input", again);
    byId("log-filter").addEventListener("submit", (event) => event.preventDefault());
    byId("log-pause").addEventListener("click", () => this.#pause(!this.paused));
  }

  explain(reasons) {
    this.explained = reasons;
    const select = byId("f-reason");
    if (select.options.length > 1) return;
    for (const code of Object.keys(reasons).sort()) select.append(el("option", { value: code }, code));
  }

  // Show the entries of one reason.
  only(reason) {
    byId("log-filter").reset();
    byId("f-reason").value = reason;
    this.open();
    byId("log-title").scrollIntoView({ block: "start" });
    byId("log").focus({ preventScroll: true });
  }

  open() {
    this.close();
    const query = new URLSearchParams({ follow: "1", limit: String(BACKLOG) });
    for (const [name, id] of [["level", "f-level"], ["reason", "f-reason"], ["event", "f-event"], ["workspaceId", "f-workspace"]]) {
      const field = byId(id);
      if (field.value.trim() && field.validity.valid) query.set(name, field.value.trim());
    }
    this.list.replaceChildren();
    this.waiting = [];
    byId("log-empty").hidden = true;
    put("log-state", "connecting…");
    const source = new EventSource(`/logs?${query}`);
    this.source = source;
    source.addEventListener("open", () => {
      this.#state();
      // what is there already comes at once
      setTimeout(() => { if (this.source === source) this.#empty(); }, 400);
    });
    source.addEventListener("entry", (event) => this.#take(JSON.parse(event.data)));
    source.addEventListener("gap", (event) => this.#take({
      ts: new Date().toISOString(), level: "warn", event: "gap",
      message: `${JSON.parse(event.data).count} entries were left out: this page reads too slowly`, details: {},
    }));
    source.addEventListener("error", () => {
      put("log-state", "connection lost, trying again…");
      if (source.readyState === EventSource.CLOSED) this.onLost();
    });
  }

  close() {
    this.source?.close();
    this.source = null;
  }

  #pause(paused) {
    this.paused = paused;
    const button = byId("log-pause");
    button.setAttribute("aria-pressed", String(paused));
    button.textContent = paused ? "Resume" : "Pause";
    this.#state();
    if (!paused) this.#schedule();
  }

  #state() {
    put("log-state", this.paused ? `paused, ${this.waiting.length} waiting` : "live");
  }

  #take(entry) {
    this.waiting.push(entry);
    if (this.waiting.length > KEEP) this.waiting.shift();
    // While it is paused a new filter still shows what is there; what comes later waits.
    if (this.paused && this.list.childElementCount > 0 && !this.drawing) this.#state();
    else this.#schedule();
  }

  #empty() {
    byId("log-empty").hidden = this.list.childElementCount > 0 || this.waiting.length > 0;
  }

  // One drawing per frame of the screen, however many entries come.
  #schedule() {
    if (this.drawing) return;
    this.drawing = true;
    setTimeout(() => {
      this.drawing = false;
      if (this.paused && this.list.childElementCount > 0) return this.#state();
      const rows = this.waiting.reverse().map((entry) => this.#row(entry));
      this.waiting = [];
      this.list.prepend(...rows);
      while (this.list.childElementCount > KEEP) this.list.lastElementChild.remove();
      this.#empty();
      return this.#state();
    }, 60);
  }

  #row(entry) {
    const details = entry.details || {};
    const where = ["workspaceId", "runtimeTargetId", "clientId", "ip"].filter((name) => details[name]);
    const summary = el("summary", {},
      el("time", { datetime: shown(entry.ts), title: shown(entry.ts) }, clock(entry.ts)),
      el("span", { class: `level ${["info", "warn", "error"].includes(entry.level) ? entry.level : ""}` }, entry.level),
      el("b", {}, entry.reason || entry.event),
      entry.message ? el("span", { class: "message" }, entry.message) : null,
      el("span", { class: "muted id" }, where.map((name) => details[name]).join(" ")));
    const says = this.explained[entry.reason];
    const more = el("div", { class: "more" },
      says && says.cause ? el("p", {}, el("b", {}, "Cause: "), says.cause) : null,
      says && says.fix ? el("p", {}, el("b", {}, "Fix: "), says.fix) : null,
      el("pre", {}, readable(entry)));
    return el("li", {}, el("details", {}, summary, more));
  }
}

// Name and value, one a line: easier on a phone than JSON.
function readable(entry) {
  const lines = [`event ${entry.event}`, `time ${entry.ts}`];
  if (entry.connectionId) lines.push(`connectionId ${entry.connectionId}`);
  for (const [name, value] of Object.entries(entry.details || {})) {
    lines.push(`${name} ${typeof value === "string" ? value : JSON.stringify(value)}`);
  }
  const text = document.createDocumentFragment();
  for (const line of lines.flatMap((one) => one.split("\n"))) text.append(shown(line), document.createElement("br"));
  return text;
}
