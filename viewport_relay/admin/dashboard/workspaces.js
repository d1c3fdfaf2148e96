// The table of workspaces and runtime targets.

import { get, post } from "./api.js";
import { ago, byId, bytes, count, el, put, shown, toast } from "./dom.js";

function cell(label, kind, ...children) {
  return el("td", { "data-label": label, class: kind }, ...children);
}

function daemon(row) {
  if (!row.daemonConnected) return cell("Daemon", "wide", el("span", { class: "sign off" }, "–"), "none");
  const d = row.daemon;
  const link = d.noise === "none" ? "no link" : `link ${d.noise}`;
  return cell("Daemon", "wide", el("span", { class: "sign good" }, "✔"), `since ${new Date(d.since).toLocaleString()}`,
    el("span", { class: "sub" }, [d.version || "version unknown", link, d.paused ? "paused" : ""].filter(Boolean).join(" · ")));
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
    const body = byId("spaces").tBodies[0];
    if (body.contains(document.activeElement)) return; // do not take a button away under a finger
    const now = Date.now();
    body.replaceChildren(...answer.workspaces.map((row) => el("tr", {},
      cell(null, "wide id", row.workspaceId),
      cell("Target", "wide id", row.runtimeTargetId === null ? "–" : row.runtimeTargetId),
      daemon(row),
      cell("Clients", "num", count(row.clientCount + row.workerCount)),
      cell("Sessions", "num", count(row.sessions)),
      cell("Frames", "num", count(row.frames)),
      cell("Queued", "num", bytes(row.queuedBytes)),
      cell("Active", "", ago((now - Date.parse(row.lastActivityAt)) / 1000)),
      el("td", {}, el("button", {
        type: "button", class: "plain", "aria-label": shown(`Disconnect ${row.workspaceId}`),
        on: { click: () => this.#disconnect(row) },
      }, "Disconnect")))));
  }

  #disconnect(row) {
    const dialog = byId("confirm");
    const target = row.runtimeTargetId === null ? "" : `, target ${row.runtimeTargetId}`;
    put("confirm-text", `Close every connection of workspace ${row.workspaceId}${target}? Peers may connect again.`);
    dialog.returnValue = "";
    dialog.addEventListener("close", async () => {
      if (dialog.returnValue !== "yes") return;
      const body = { workspaceId: row.workspaceId };
      if (row.runtimeTargetId !== null) body.runtimeTargetId = row.runtimeTargetId;
      try {
        const answer = await post("/disconnect", body);
        toast(`${answer.disconnected} connections closed.`);
      } catch (error) {
        toast(`Not done: ${error.message}`);
      }
      document.activeElement?.blur();
      this.refresh().catch(() => {});
    }, { once: true });
    dialog.showModal();
  }
}
