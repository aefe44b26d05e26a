// @ts-check
// The runs that the page has met, as the control plane last described each of them.

/** @import { Run, ShownRun } from "../types.d.ts" */

/**
 * @callback Listener
 * @param {ShownRun | null} run null means that it was deleted
 * @param {ShownRun | undefined} before what the page knew of it
 * @param {string} id
 * @returns {void}
 */

export class RunStore {
  constructor() {
    /** @type {Map<string, ShownRun>} */
    this.runs = new Map();
    /** @type {Listener[]} */
    this.listeners = [];
    this.nextIndex = 0;
  }

  /** @param {Listener} listener called for each run that has changed */
  onChange(listener) {
    this.listeners.push(listener);
  }

  /** @param {string} id */
  get(id) {
    return this.runs.get(id);
  }

  /**
   * Takes a view of a run, unless a newer one is known.
   *
   * @param {Run} view
   * @returns {ShownRun} what is known now
   */
  take(view) {
    const before = this.runs.get(view.id);
    if (before !== undefined && before.revision > view.revision) return before;
    const index = before?.index ?? this.nextIndex++;
    const run = { ...view, received: Date.now() / 1000, index };
    this.runs.set(run.id, run);
    for (const listener of this.listeners) listener(run, before, run.id);
    return run;
  }

  /** @param {string} id */
  forget(id) {
    const before = this.runs.get(id);
    if (before === undefined) return;
    this.runs.delete(id);
    for (const listener of this.listeners) listener(null, before, id);
  }
}
