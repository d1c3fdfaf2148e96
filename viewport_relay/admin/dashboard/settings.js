// The settings in force and the warnings of the start, read when the section is opened.

import { get } from "./api.js";
import { byId, el } from "./dom.js";

export class Settings {
  constructor() {
    byId("settings-card").addEventListener("toggle", () => this.#read().catch(() => {}));
  }

  async #read() {
    if (!byId("settings-card").open) return;
    const { settings, warnings } = await get("api/settings");
    byId("settings-warnings").replaceChildren(...warnings.map((text) => el("li", {}, el("span", { class: "sign warn" }, "▲"), text)));
    const set = settings.filter((row) => row.source !== "default");
    const rest = settings.filter((row) => row.source === "default");
    byId("settings").tBodies[0].replaceChildren(...[...set, ...rest].map((row) => el("tr", { class: row.source === "default" ? "muted" : "" },
      el("td", { class: "wide id" }, row.name),
      el("td", { class: "wide id", "data-label": "Value" }, row.value),
      el("td", { "data-label": "Default" }, row.default),
      el("td", { "data-label": "From" }, row.source))));
  }
}
