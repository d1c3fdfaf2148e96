// The table of workspaces and runtime targets. Rows are kept and updated, so that the focus stays where it is.

import { get, post } from "./api.js";
import { ago, byId, bytes, confirmed, count, el, moment, put, shown, toast } from "./dom.js";

function cell(label, kind, ...children) {
  return el("td", { "data-label": label, class: kind }, ...children);
}

function daemon(row, fleet) {
  if (!row.daemonConnected) {
    const waiting = row.clientCount > 0;
    if (fleet) return cell("Daemon", "wide", el("span", { class: "sign off" }, "–"), "not on this relay");
    return cell("Daemon", "wide", el("span", { class: `sign ${waiting ? "warn" : "off"}` }, waiting ? "▲" : "–"),
      waiting ? "none: clients wait" : "none");
  }
  const d = row.daemon;
  const link = d.noise === "none" ? "" : `link ${d.noise}`;
  return cell("Daemon", "wide", el("span", { class: "sign good" }, "✔"), `since ${moment(d.since)}`,
    el("span", { class: "sub" }, [d.version, link, d.paused ? "paused" : ""].filter(Boolean).join(" · ")));
}

// Puts rows into a table body; a button that has the focus has it again in its new row.
export function replaceRows(body, rows) {
  const focused = body.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  body.replaceChildren(...rows);
  if (focused) body.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

export class Workspaces {
  constructor() {
    this.search = byId("spaces-search");
    let timer = 0;
    this.search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.refresh().catch(() => {}), 250);
    });
  }

  async refresh() {
    const answer = await get(`api/workspaces?search=${encodeURIComponent(this.search.value.trim())}`);
    const more = answer.total > answer.workspaces.length ? `, the latest ${answer.workspaces.length} shown` : "";
    put("spaces-count", `${count(answer.total)}${more}`);
    byId("spaces-empty").hidden = answer.total > 0;
    const now = Date.now();
    replaceRows(byId("spaces").tBodies[0], answer.workspaces.map((row) => el("tr", {},
      cell(null, "wide id", row.workspaceId),
      cell("Target", "wide id", row.runtimeTargetId === null ? "–" : row.runtimeTargetId),
      daemon(row, answer.severalRelays),
      cell("Clients", "num", count(row.clientCount + row.workerCount)),
      cell("Sessions", "num", count(row.sessions)),
      cell("Frames", "num", count(row.frames)),
      cell("Queued", "num", bytes(row.queuedBytes)),
      cell("Active", "", ago((now - Date.parse(row.lastActivityAt)) / 1000)),
      el("td", {}, el("button", {
        type: "button", class: "plain", "data-key": `${row.workspaceId} ${row.runtimeTargetId ?? ""}`,
        "aria-label": shown(`Disconnect ${row.workspaceId}`),
        on: { click: () => this.#disconnect(row) },
      }, "Disconnect")))));
  }

  async #disconnect(row) {
    const target = row.runtimeTargetId === null ? "" : `, target ${row.runtimeTargetId}`;
    const question = `Close every connection of workspace ${row.workspaceId}${target}? Peers may connect again.`;
    if (!(await confirmed(question, "Disconnect"))) return;
    const body = { workspaceId: row.workspaceId };
    if (row.runtimeTargetId !== null) body.runtimeTargetId = row.runtimeTargetId;
    try {
      const answer = await post("/disconnect", body);
      toast(`${answer.disconnected} connections closed.`);
    } catch (error) {
      toast(`Not done: ${error.message}`);
    }
    this.refresh().catch(() => {});
  }
}
