// Small line charts in SVG: a few series of one unit over a time span that ends now, with ticks, gaps and values on hover.

import { el, hourMinute, rate, time } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 600;
const HEIGHT = 150;
const GAP = 30; // seconds without a sample that are shown as a gap
const TICKS = 3; // times on the horizontal axis, beside "now"

function svg(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  return node;
}

// The next "round" number at or above n, so that the scale does not jump with every sample.
function ceiling(n) {
  if (n <= 4) return 4;
  const power = 10 ** Math.floor(Math.log10(n));
  return [1, 2, 4, 5, 8, 10].map((step) => step * power).find((edge) => edge >= n);
}

export class Chart {
  constructor(figure, names) {
    this.names = names;
    this.picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    for (const y of [0, HEIGHT / 2, HEIGHT]) this.picture.append(svg("line", { x1: 0, x2: WIDTH, y1: y, y2: y }));
    this.lines = names.map((_, i) => svg("path", { class: `s${i}` }));
    this.cursor = svg("line", { class: "cursor", y1: 0, y2: HEIGHT, x1: -9, x2: -9 });
    this.picture.append(...this.lines, this.cursor);
    this.values = names.map(() => el("b"));
    this.at = el("span", { class: "at" });
    const legend = el("div", { class: "legend" }, ...names.map((name, i) => {
      const sample = svg("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" });
      sample.append(svg("line", { x1: 0, x2: 26, y1: 4, y2: 4, class: `s${i}` }));
      return el("span", {}, sample, `${name} `, this.values[i]);
    }), this.at);
    this.ticksY = [el("span"), el("span"), el("span", {}, "0")];
    this.ticksX = Array.from({ length: TICKS }, () => el("span"));
    figure.append(legend, el("div", { class: "chart" },
      el("div", { class: "ticks-y" }, ...this.ticksY), this.picture,
      el("div", { class: "ticks" }, ...this.ticksX, el("span", {}, "now"))));
    this.picture.addEventListener("pointermove", (event) => this.#point(event));
    this.picture.addEventListener("pointerleave", () => this.#release());
    this.shown = null;
    this.pointed = null;
  }

  // times: seconds, rising; series: one array of numbers (or null for a gap) per name.
  // A relay that is younger than the span gets a shorter one.
  draw(times, series, now, longest) {
    const span = Math.min(longest, Math.max(60, now - (times[0] ?? now)));
    const start = now - span;
    let first = times.findIndex((at) => at >= start);
    if (first < 0) first = times.length;
    if (first > 0) first -= 1;
    let most = 0;
    for (const values of series) for (let i = first; i < values.length; i += 1) most = Math.max(most, values[i] ?? 0);
    const top = ceiling(most);
    series.forEach((values, n) => {
      let path = "";
      let pen = false;
      for (let i = first; i < values.length; i += 1) {
        if (values[i] === null || (i > first && times[i] - times[i - 1] > GAP)) pen = false;
        if (values[i] === null) continue;
        const x = Math.max(0, ((times[i] - start) / span) * WIDTH);
        path += `${pen ? "L" : "M"}${x.toFixed(1)} ${(HEIGHT - (values[i] / top) * HEIGHT).toFixed(1)}`;
        pen = true;
      }
      this.lines[n].setAttribute("d", path);
    });
    this.shown = { times, series, start, span };
    this.ticksY[0].textContent = rate(top);
    this.ticksY[1].textContent = rate(top / 2);
    const label = span < 300 ? time : hourMinute;
    this.ticksX.forEach((tick, i) => { tick.textContent = label(start + (span * i) / TICKS); });
    this.#say();
    const said = this.names.map((name, n) => `${name} ${rate(series[n][times.length - 1] ?? 0)}`).join(", ");
    this.picture.setAttribute("aria-label", `Now: ${said}. Highest in this span: ${rate(most)}.`);
  }

  #point(event) {
    const box = this.picture.getBoundingClientRect();
    this.pointed = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    this.#say();
  }

  #release() {
    this.pointed = null;
    this.#say();
  }

  // The values at the pointer, else the latest.
  #say() {
    if (this.shown === null) return;
    const { times, series, start, span } = this.shown;
    let index = times.length - 1;
    if (this.pointed !== null) {
      const wanted = start + this.pointed * span;
      index = times.findIndex((at) => at >= wanted);
      if (index < 0) index = times.length - 1;
    }
    const x = this.pointed === null ? -9 : this.pointed * WIDTH;
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    this.at.textContent = this.pointed === null || index < 0 ? "" : time(times[index]);
    series.forEach((values, n) => {
      const value = values[index];
      this.values[n].textContent = value === null || value === undefined ? "–" : rate(value);
    });
  }
}
