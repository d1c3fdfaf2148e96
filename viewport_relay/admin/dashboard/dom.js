// Making elements. Text always goes in as text: nothing here, or anywhere on this page, parses HTML.

export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") node.className = value;
    else if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else if (value !== null && value !== undefined) node.setAttribute(name, String(value));
  }
  for (const child of children) {
    if (child !== null && child !== undefined) node.append(child instanceof Node ? child : shown(child));
  }
  return node;
}

const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

// Control characters and marks that turn the direction of text are shown as codes.
export function shown(value) {
  return String(value).replace(HIDDEN, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
}

export const byId = (id) => document.getElementById(id);

export function put(id, text) {
  const node = byId(id);
  const value = shown(text);
  if (node.textContent !== value) node.textContent = value;
}

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export function count(n) {
  return n < 100000 ? whole.format(Math.round(n)) : short.format(n);
}

export function rate(n) {
  return n < 10 && !Number.isInteger(n) ? n.toFixed(1) : count(n);
}

export function bytes(n) {
  if (n < 1024) return `${n} B`;
  if (n < 1024 * 1024) return `${(n / 1024).toFixed(1)} KiB`;
  return `${(n / 1024 / 1024).toFixed(1)} MiB`;
}

export function ago(seconds) {
  if (seconds < 2) return "just now";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} d ago`;
}

// All times are local, on 24 hours.
const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };

export function clock(iso) {
  const at = new Date(iso);
  return Number.isNaN(at.getTime()) ? String(iso) : at.toLocaleTimeString("en-GB", CLOCK);
}

// Seconds since 1970.
export const time = (seconds) => clock(seconds * 1000);
export const hourMinute = (seconds) => time(seconds).slice(0, 5);

// The time alone for today, else with the date: 28 Nov 13:15.
export function moment(iso) {
  const at = new Date(iso);
  if (at.toDateString() === new Date().toDateString()) return clock(iso);
  return `${at.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${clock(iso).slice(0, 5)}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${(seconds * 1000).toPrecision(2)} ms`;
  return `${seconds.toPrecision(2)} s`;
}

let toastTimer = 0;

export function toast(text) {
  const node = byId("toast");
  node.textContent = shown(text);
  node.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { node.hidden = true; }, 5000);
}

// Asks in a dialog; true when the operator agreed. `act` is the word on the button.
export function confirmed(question, act) {
  const dialog = byId("confirm");
  put("confirm-text", question);
  put("confirm-act", act);
  dialog.returnValue = "";
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
  });
}
