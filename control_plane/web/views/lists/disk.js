// @ts-check
// The line that says that the disk of the runs is nearly full.

import { get } from "../../api.js";
import { byId, setText, show } from "../../dom.js";
import { size } from "../../format.js";

/** @import { Disk } from "../../types.d.ts" */

const EVERY_MS = 20_000;

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
  const needs = `the next checkpoints of the active runs need ${size(disk.needed_bytes)}`;
  setText(byId("disk"), disk.low
    ? `The disk of the runs is nearly full: ${size(disk.free_bytes)} free, and ${needs}.`
      + " A run that finds no room is interrupted, and goes on when there is room again."
    : "");
  show(byId("disk"), disk.low);
}
