// @ts-check
// How many runs are active and queued, of all runs, whether or not the page knows them.

import { get } from "../api.js";
import { isActive } from "../format.js";

/** @import { Run, RunsPage } from "../types.d.ts" */
/** @import { RunStore } from "./store.js" */

export const ACTIVE_PATH = "/runs?limit=200&state=starting&state=running"
  + "&state=waiting_for_teacher&state=stopping";
const QUEUED_PATH = "/runs?limit=1&state=queued";
const ASK_AFTER_MS = 1000;

export class Counts {
  active = 0;
  queued = 0;
  timer = 0;

  /**
   * @param {RunStore} store
   * @param {() => void} onChange
   */
  constructor(store, onChange) {
    this.store = store;
    this.onChange = onChange;
    store.onChange((run, before) => {
      if (before === undefined) return; // it was loaded, or `noticed`
      this.add(before, -1);
      if (run !== null) this.add(run, 1);
    });
  }

  /**
   * @param {Run} run
   * @param {1 | -1} sign
   */
  add(run, sign) {
    if (isActive(run)) this.active += sign;
    else if (run.state === "queued") this.queued += sign;
  }

  /**
   * Notices an event: that of a run which is not known does not say what the run was before.
   *
   * @param {string} id
   */
  noticed(id) {
    if (this.store.get(id) === undefined) this.askSoon();
  }

  askSoon() {
    this.timer ||= setTimeout(() => {
      this.timer = 0;
      this.ask().catch(() => {}); // the banner says if the connection is lost
    }, ASK_AFTER_MS);
  }

  /** @returns {Promise<RunsPage>} the active runs */
  async ask() {
    /** @type {[RunsPage, RunsPage]} */
    const [active, queued] = await Promise.all([get(ACTIVE_PATH), get(QUEUED_PATH)]);
    this.active = active.total;
    this.queued = queued.total;
    this.onChange();
    return active;
  }
}
