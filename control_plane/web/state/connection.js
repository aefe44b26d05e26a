// @ts-check
// The event stream of the list: opened again whenever it ends, with a banner while it is lost.

import { follow } from "../api.js";
import { byId, setText, show } from "../dom.js";
import { clockTime } from "../format.js";

const BANNER_AFTER_MS = 1500;
const RETRY_MS = [500, 1000, 2000, 5000];

/**
 * Loads and follows, for ever.
 *
 * @param {() => Promise<number>} load returns the revision that the stream continues from
 * @param {(kind: string, data: any) => void} onEvent
 */
export async function stayConnected(load, onEvent) {
  let failures = 0;
  let warning = 0;
  let lastHeard = 0;
  for (;;) {
    try {
      const revision = await load();
      lastHeard = Date.now() / 1000;
      await follow(`/events?after=${revision}`, () => {
        failures = 0;
        clearTimeout(warning);
        warning = 0;
        show(byId("banner"), false);
      }, (kind, data) => {
        lastHeard = Date.now() / 1000;
        onEvent(kind, data);
      });
    } catch {
      // The banner says so if it lasts.
    }
    warning ||= setTimeout(() => showBanner(lastHeard), BANNER_AFTER_MS);
    const pause = RETRY_MS[Math.min(failures, RETRY_MS.length - 1)];
    await new Promise((resolve) => setTimeout(resolve, pause));
    failures += 1;
  }
}

/** @param {number} lastHeard 0 before the first answer */
function showBanner(lastHeard) {
  setText(byId("banner"), lastHeard > 0
    ? `Connection lost. The page shows the state at ${clockTime(lastHeard)}. Reconnecting \u2026`
    : "The control plane is not answering. Retrying \u2026");
  show(byId("banner"), true);
}
