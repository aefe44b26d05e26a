// @ts-check
// How much of the disk of the runs is free, and a banner while there is too little.

import { get } from "../../api.js";
import { byId, make, setText, show } from "../../dom.js";
import { size } from "../../format.js";

/** @import { Disk } from "../../types.d.ts" */

const EVERY_MS = 20_000;

let shown = "";

/** Says it while it is so. */
export function watchDisk() {
  const refresh = async () => {
    if (!document.hidden) {
      try {
        render(await get("/disk"));
      } catch {
        // The banner says if the connection is lost.
      }
    }
    setTimeout(refresh, EVERY_MS);
  };
  refresh();
}

/** @param {Disk} disk */
function render(disk) {
  setText(byId("disk-free"), `${size(disk.free_bytes)} free`);
  byId("disk-free").title = `Of ${size(disk.total_bytes)} on the disk of the runs`;
  const needs = `the next checkpoints of the active runs need ${size(disk.needed_bytes)}`;
  const text = disk.low
    ? `The disk of the runs is nearly full: ${size(disk.free_bytes)} free, and ${needs}.`
      + " A run that finds no room is interrupted, and goes on when there is room again."
    : disk.warning ?? "";
  if (text !== shown) {
    shown = text;
    byId("disk").replaceChildren(`${text} `, make("a", { href: "#/?prune=1", textContent: "Prune runs" }));
  }
  show(byId("disk"), text !== "");
}
