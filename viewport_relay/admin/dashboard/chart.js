// Small line charts in SVG: a few series over a time span that ends now.

import { el, rate } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 600;
const HEIGHT = 150;

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
    this.lines = names.map((_, i) => svg("polyline", { class: `s${i}` }));
    this.picture.append(...this.lines);
    this.top = el("span");
    this.from = el("span");
    this.values = names.map(() => el("b"));
    const legend = el("div", { class: "legend" }, ...names.map((name, i) => {
      const sample = svg("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" });
      sample.append(svg("line", { x1: 0, x2: 26, y1: 4, y2: 4, class: `s${i}` }));
      return el("span", {}, sample, `${name} `, this.values[i]);
    }));
    figure.append(legend, el("div", { class: "chart" },
      el("div", { class: "ticks" }, this.top), this.picture,
      el("div", { class: "ticks" }, this.from, el("span", {}, "now"))));
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
      const points = [];
      for (let i = first; i < values.length; i += 1) {
        if (values[i] === null) continue;
        const x = Math.max(0, ((times[i] - start) / span) * WIDTH);
        points.push(`${x.toFixed(1)},${(HEIGHT - (values[i] / top) * HEIGHT).toFixed(1)}`);
      }
      this.lines[n].setAttribute("points", points.join(" "));
      this.values[n].textContent = rate(values[values.length - 1] ?? 0);
    });
    this.top.textContent = rate(top);
    this.from.textContent = span < 90 ? `${Math.round(span)} s ago` : `${Math.round(span / 60)} min ago`;
    const said = this.names.map((name, n) => `${name} ${this.values[n].textContent}`).join(", ");
    this.picture.setAttribute("aria-label", `Now: ${said}. Highest in this span: ${rate(most)}.`);
  }
}
