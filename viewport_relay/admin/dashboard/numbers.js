// The upper half: banner, tiles, charts, headroom, refusals with cause and fix.

import { Chart } from "./chart.js";
import { ago, byId, bytes, clock, count, duration, el, moment, put, rate } from "./dom.js";

const KEEP = 3700; // seconds of samples kept
const MARKS = { good: "✔", warn: "▲", bad: "✖", off: "–" };
const SHOWN_REASONS = 8;

export class Numbers {
  // onReason(code): show the log lines of this reason.
  constructor(onReason) {
    this.onReason = onReason;
    this.connections = new Chart(byId("chart-connections"), ["Clients", "Daemons", "Workers"]);
    this.traffic = new Chart(byId("chart-frames"), ["Frames per second"]);
    this.refusals = new Chart(byId("chart-refused"), ["Refusals per minute"]);
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
    const told = columns.at.map((at, i) => ({
      at, daemons: columns.daemons[i], clients: columns.clients[i], workers: columns.workers[i],
      frames: columns.frames[i], refused: columns.refused[i],
    }));
    // What this page has seen before (of the relay before a restart) stays; the relay knows the rest better.
    const first = told.length ? told[0].at : Infinity;
    this.samples = [...this.samples.filter((sample) => sample.at < first), ...told];
  }

  show(overview) {
    const before = this.last;
    this.last = overview;
    this.samples.push({
      at: overview.now, daemons: overview.daemons, clients: overview.clients, workers: overview.workers,
      frames: overview.frames, refused: overview.refused,
    });
    while (this.samples.length && this.samples[0].at < overview.now - KEEP) this.samples.shift();
    byId("board").classList.remove("lost");
    this.#verdict(overview.verdict);
    put("counts", overview.verdict.counts);
    put("n-daemons", count(overview.daemons));
    put("n-clients", count(overview.clients));
    put("n-workers", count(overview.workers));
    const up = ago(overview.uptimeMs / 1000).replace(" ago", "");
    put("who", `${overview.relayId} · ${overview.relayMode} · ${overview.version} · up ${up}`);
    this.#charts(overview.now);
    this.#headroom(overview, before);
    if (!before || JSON.stringify(before.reasons) !== JSON.stringify(overview.reasons)) this.#reasons(overview);
  }

  // The relay does not answer: what the page shows is old, and looks it.
  lost() {
    const asOf = this.last === null ? "" : ` The figures are as of ${clock(this.last.now * 1000)}.`;
    byId("board").classList.add("lost");
    this.#verdict({ state: "bad", headline: `The relay does not answer.${asOf}`, checks: [] });
    put("counts", "");
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
      const more = s[name] - samples[j][name];
      return passed > 0 && more >= 0 ? (more / passed) * seconds : null; // fewer than before: a restart
    });
    const frames = per("frames", 1);
    const refused = per("refused", 60);
    put("n-frames", rate(frames[frames.length - 1] ?? 0));
    put("n-refused", rate(refused[refused.length - 1] ?? 0));
    this.connections.draw(times, ["clients", "daemons", "workers"].map((n) => samples.map((s) => s[n])), now, this.span);
    this.traffic.draw(times, [frames], now, this.span);
    this.refusals.draw(times, [refused], now, this.span);
  }

  #headroom(overview, before) {
    const { connections, processes, latency, certificateEnds } = overview.capacity;
    const rows = [["Connections", of(connections.used, connections.limit), share(connections.used, connections.limit)]];
    for (const [name, numbers] of Object.entries(processes)) {
      const past = before?.capacity.processes[name];
      const passed = before ? overview.now - before.now : 0;
      const cpu = past && passed > 0 ? Math.max(0, (numbers.cpu_seconds - past.cpu_seconds) / passed) : null;
      const title = Object.keys(processes).length > 1 ? ` (${name})` : "";
      rows.push([`CPU${title}`, cpu === null ? "–" : `${Math.round(cpu * 100)} % of a core`, cpu]);
      rows.push([`Memory${title}`, bytes(numbers.resident_memory_bytes), null]);
      rows.push([`Open files${title}`, of(numbers.open_fds, numbers.max_fds), share(numbers.open_fds, numbers.max_fds)]);
    }
    for (const [name, title] of [["forward", "A frame takes"], ["admission", "An upgrade takes"], ["platform", "The platform takes"]]) {
      const { p50, p99 } = latency[name];
      rows.push([title, p50 === null ? "no sample in 5 min" : `${duration(p50)} (p50), ${duration(p99)} (p99)`, null]);
    }
    if (certificateEnds !== null) {
      const days = (Date.parse(certificateEnds) / 1000 - overview.now) / 86400;
      const words = days < 0 ? "has expired" : `in ${Math.floor(days)} days`;
      rows.push(["Certificate ends", `${certificateEnds.slice(0, 10)}, ${words}`, days < 14 ? 1 : null]);
    }
    byId("headroom").replaceChildren(...rows.map(([title, value, used]) => el("div", {},
      el("dt", {}, title), el("dd", { class: used === null ? "" : used > 0.9 ? "bad" : used > 0.7 ? "warn" : "" }, value))));
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
      const when = row.lastAt ? `last ${moment(row.lastAt)}` : "";
      const who = row.example ? `${number(row.workspaces, "workspace", "s")}, ${number(row.addresses, "address", "es")}; e.g. ${row.example}` : "";
      return el("li", { "data-reason": row.reason },
        el("div", { class: "count" }, count(row.count), el("small", {}, kinds.join(", "))),
        el("div", {},
          el("button", {
            type: "button", class: `code ${row.level}`, title: "Show the log lines", on: { click: () => this.onReason(row.reason) },
          }, row.reason), " ", el("span", {}, says.text || ""), el("span", { class: "muted" }, when ? ` · ${when}` : "")),
        el("div", { class: "muted" }, who),
        el("div", { class: "muted" }, says.cause ? `Cause: ${says.cause}` : ""),
        el("div", { class: "fix" }, row.fix || says.fix ? el("b", {}, "Fix: ") : null, row.fix || says.fix || ""));
    }));
  }
}

const number = (n, word, ending) => `${n} ${word}${n === 1 ? "" : ending}`;
const share = (used, limit) => (limit ? used / limit : null);
const of = (used, limit) => (limit ? `${count(used)} of ${count(limit)}` : `${count(used)}, no limit`);
