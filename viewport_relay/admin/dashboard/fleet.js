// The table of other relays of the fleet, from what this one knows of them.

import { ago, byId, el } from "./dom.js";

const READS = { batches: "batches", frames: "single frames", unknown: "not known" };

export function showFleet(relays) {
  byId("fleet").hidden = relays.length === 0;
  byId("relays").tBodies[0].replaceChildren(...relays.map((relay) => el("tr", {},
    el("td", { class: "wide id" }, relay.relayId),
    el("td", { class: "wide id", "data-label": "Address" }, relay.url ?? "–"),
    el("td", { "data-label": "Version" }, relay.version ?? "–"),
    el("td", { "data-label": "Reads" }, READS[relay.bus] ?? relay.bus),
    el("td", { "data-label": "Last frame" }, relay.seconds === null ? "none" : ago(relay.seconds)))));
}
