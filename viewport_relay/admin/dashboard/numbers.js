// The upper half: banner, tiles, charts, refusals with cause and fix.

import { Chart } from "./chart.js";
import { ago, byId, clock, count, el, put, rate } from "./dom.js";

const KEEP = 3700; // seconds of samples kept
const MARKS = { good: "✔", warn: "▲", bad: "✖", off: "–" };
const SHOWN_REASONS = 8;

export class Numbers {
  constructor() {
    this.connections = new Chart(byId("chart-connections"), ["Clients", "Daemons", "Workers"]);
    this.traffic = new Chart(byId("chart-frames"), ["Frames/s", "Refusals/min"]);
    this.span = 900;
    this.samples = [];
    this.explained = {};
    this.allReasons = false;
    this.last = null;
    byId("all-reasons").addEventListener("click", () => {
      this.allReasons = !this.allReasons;
      if (this.last) this.#reasons(this.last);
    });
    for (const button of document.querySelectorAll("[data-span]")) {
      button.addEventListener("click", () => {
        this.span = Number(button.dataset.span);
        for (const other of document.querySelectorAll("[data-span]")) {
          other.setAttribute("aria-pressed", String(other === button));
        }
        if (this.last) this.#charts(this.last.now);
      });
    }
  }

  explain(reasons) {
    this.explained = reasons;
  }

  history(columns) {
    this.samples = columns.at.map((at, i) => ({
      at, daemons: columns.daemons[i], clients: columns.clients[i], workers: columns.workers[i],
      frames: columns.frames[i], refused: columns.refused[i],
    }));
  }

  show(overview) {
    const before = this.last;
    this.last = overview;
    const newest = this.samples[this.samples.length - 1];
    if (newest && overview.frames < newest.frames) this.samples = []; // the relay was started anew
    this.samples.push({
      at: overview.now, daemons: overview.daemons, clients: overview.clients, workers: overview.workers,
      frames: overview.frames, refused: overview.refused,
    });
    while (this.samples.length && this.samples[0].at < overview.now - KEEP) this.samples.shift();
    this.#verdict(overview.verdict);
    put("n-daemons", count(overview.daemons));
    put("n-clients", count(overview.clients));
    put("n-workers", count(overview.workers));
    const up = ago(overview.uptimeMs / 1000).replace(" ago", "");
    put("who", `${overview.relayId} · ${overview.relayMode} · ${overview.version} · up ${up}`);
    this.#charts(overview.now);
    if (!before || JSON.stringify(before.reasons) !== JSON.stringify(overview.reasons)) this.#reasons(overview);
  }

  lost(text) {
    this.#verdict({ state: "warn", headline: text, checks: [] });
  }

  #verdict(verdict) {
    byId("verdict").dataset.state = verdict.state;
    put("mark", MARKS[verdict.state] || "");
    put("headline", verdict.headline);
    document.title = `${MARKS[verdict.state] || ""} Viewport relay`;
    byId("checks").replaceChildren(...verdict.checks.map((check) => el("li", {},
      el("span", { class: `sign ${check.state}`, title: check.state }, MARKS[check.state] || ""),
      el("b", {}, check.name), " ", check.text.charAt(0).toUpperCase() + check.text.slice(1),
      check.when ? el("span", { class: "muted" }, ` (${check.when})`) : null,
      check.fix ? el("span", { class: "fix" }, el("b", {}, "Fix: "), check.fix) : null)));
  }

  #charts(now) {
    const samples = this.samples;
    const times = samples.map((s) => s.at);
    const per = (name, seconds) => samples.map((s, i) => {
      if (i === 0) return null;
      // over at least ten seconds, so that single frames do not make spikes
      let j = i - 1;
      while (j > 0 && s.at - samples[j].at < 10) j -= 1;
      const passed = s.at - samples[j].at;
      return passed > 0 ? Math.max(0, ((s[name] - samples[j][name]) / passed) * seconds) : null;
    });
    const frames = per("frames", 1);
    const refused = per("refused", 60);
    put("n-frames", rate(frames[frames.length - 1] ?? 0));
    put("n-refused", rate(refused[refused.length - 1] ?? 0));
    this.connections.draw(times, ["clients", "daemons", "workers"].map((n) => samples.map((s) => s[n])), now, this.span);
    this.traffic.draw(times, [frames, refused], now, this.span);
  }

  #reasons(overview) {
    const all = overview.reasons;
    byId("no-reasons").hidden = all.length > 0;
    const button = byId("all-reasons");
    button.hidden = all.length <= SHOWN_REASONS;
    button.textContent = this.allReasons ? "Show the latest" : `Show all ${all.length}`;
    const rows = this.allReasons ? all : all.slice(0, SHOWN_REASONS);
    byId("reasons").replaceChildren(...rows.map((row) => {
      const says = this.explained[row.reason] || {};
      const kinds = ["refused", "closed", "dropped"].filter((kind) => row[kind] > 0);
      const last = row.lastAt ? `, last at ${clock(row.lastAt)}` : "";
      return el("li", { "data-reason": row.reason },
        el("div", { class: "count" }, count(row.count), el("small", {}, kinds.join(", "))),
        el("div", {}, el("span", { class: `code ${row.level}` }, row.reason), el("span", { class: "muted" }, last)),
        el("div", {}, says.text || ""),
        el("div", { class: "muted" }, says.cause ? `Cause: ${says.cause}` : ""),
        el("div", { class: "fix" }, says.fix ? el("b", {}, "Fix: ") : null, says.fix || ""));
    }));
  }
}
