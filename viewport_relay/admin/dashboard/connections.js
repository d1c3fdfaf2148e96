// The table of connections: who is there, with a button that closes one.

import { get, post } from "./api.js";
import { byId, bytes, confirmed, count, el, moment, put, shown, toast } from "./dom.js";
import { replaceRows } from "./workspaces.js";

const ROLES = { "workspace-daemon": "daemon" };

export class Connections {
  constructor() {
    this.search = byId("peers-search");
    let timer = 0;
    this.search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.refresh().catch(() => {}), 250);
    });
    byId("peers-card").addEventListener("toggle", () => this.refresh().catch(() => {}));
  }

  async refresh() {
    if (!byId("peers-card").open) return;
    const answer = await get(`api/connections?search=${encodeURIComponent(this.search.value.trim())}`);
    const more = answer.total > answer.connections.length ? `, ${answer.connections.length} shown` : "";
    put("peers-count", `${count(answer.total)}${more}`);
    byId("peers-empty").hidden = answer.total > 0;
    replaceRows(byId("peers").tBodies[0], answer.connections.map((row) => this.#row(row, answer.severalRelays)));
  }

  #row(row, fleet) {
    const cell = (label, kind, ...children) => el("td", { "data-label": label, class: kind }, ...children);
    const notes = [row.waits ? (fleet ? "its daemon is not on this relay" : "waits for its daemon") : "", row.paused ? "paused" : "", row.noise === "none" ? "" : `link ${row.noise}`];
    return el("tr", {},
      cell(null, "wide", el("b", {}, ROLES[row.role] || row.role), " ", el("span", { class: "id" }, row.clientId),
        el("span", { class: "sub" }, [row.version, ...notes].filter(Boolean).join(" · "))),
      cell("Workspace", "wide id", row.workspaceId, row.runtimeTargetId === null ? "" : el("span", { class: "sub" }, row.runtimeTargetId)),
      cell("Address", "id", row.ip),
      cell("Since", "", moment(row.since)),
      cell("Queued", "num", bytes(row.queuedBytes)),
      el("td", {}, el("button", {
        type: "button", class: "plain", "data-key": row.connectionId, "aria-label": shown(`Disconnect ${row.clientId}`),
        on: { click: () => this.#disconnect(row) },
      }, "Disconnect")));
  }

  async #disconnect(row) {
    const question = `Close the connection of ${ROLES[row.role] || row.role} ${row.clientId} from ${row.ip}? It may connect again.`;
    if (!(await confirmed(question, "Disconnect"))) return;
    try {
      const answer = await post("/disconnect", { connectionId: row.connectionId });
      toast(answer.disconnected ? "Closed." : "It was gone already.");
    } catch (error) {
      toast(`Not done: ${error.message}`);
    }
    this.refresh().catch(() => {});
  }
}
