// @ts-check
// Alerts as they come: a banner, the number of new ones beside the link, and notifications of the
// browser. Every alert is kept by the control plane; the page remembers which ones were seen.

import { get } from "../../api.js";
import { byId, setText, show } from "../../dom.js";
import { count, sentence } from "../../format.js";
import { pathOfRun } from "../../state/router.js";
import { notify } from "./notifications.js";

/** @import { Alert, AlertKind, Alerts } from "../../types.d.ts" */

const SEEN_KEY = "lectern-alerts-seen";
const LIMIT = 100;
const MAX_KEPT = 500;

/** @type {Record<AlertKind, string>} */
export const KINDS = {
  failed: "Failed",
  stalled: "Stalled",
  diverged: "Diverged",
  waiting: "Waiting",
  disk: "Disk",
  finished: "Finished",
};

/** @param {Alert} alert */
export const titleOf = ({ kind, name, run_id }) =>
  `${KINDS[kind] ?? kind}${run_id === null ? "" : `: ${name ?? run_id}`}`;

/** @param {Alert} alert */
export const pathOfAlert = ({ run_id }) => (run_id === null ? "#/alerts" : pathOfRun(run_id));

export class AlertCenter {
  /** @param {() => void} onChange called after new alerts, and when they were seen */
  constructor(onChange) {
    this.onChange = onChange;
    /** @type {Map<number, Alert>} by seq */
    this.alerts = new Map();
    /** @type {string | null} scheme and host of the webhook */
    this.receiver = null;
    this.hasLoaded = false;
    byId("alert-close").addEventListener("click", () => this.see());
    byId("alert-link").addEventListener("click", () => this.see());
  }

  /** Loads the newest, and how their deliveries went, which no event says. */
  async load() {
    /** @type {Alerts} */
    const { alerts, receiver } = await get(`/alerts?limit=${LIMIT}`);
    this.receiver = receiver;
    if (!this.hasLoaded) {
      // What was there before the page was opened is no news.
      for (const alert of alerts) this.alerts.set(alert.seq, alert);
      this.hasLoaded = true;
      // A database that began anew counts from the start.
      if (localStorage.getItem(SEEN_KEY) === null || this.seen() > this.newest()) this.see();
    } else {
      for (const alert of alerts.toReversed()) this.take(alert, true);
    }
    this.fill();
  }

  /**
   * Takes an alert, whether new or sent again.
   *
   * @param {Alert} alert
   * @param {boolean} [isLoaded]
   */
  take(alert, isLoaded = false) {
    const isNew = !this.alerts.has(alert.seq);
    if (!isNew && !isLoaded) return;
    this.alerts.set(alert.seq, alert);
    if (!isNew) return;
    if (this.alerts.size > MAX_KEPT) this.alerts.delete(Math.min(...this.alerts.keys()));
    notify(alert, titleOf(alert), pathOfAlert(alert));
    this.fill();
  }

  newest() {
    return Math.max(0, ...this.alerts.keys());
  }

  seen() {
    return Number(localStorage.getItem(SEEN_KEY) ?? 0);
  }

  /** Newest first. */
  list() {
    return [...this.alerts.values()].sort((one, other) => other.seq - one.seq);
  }

  /** Remembers that the user has seen them all, once they are loaded. */
  see() {
    if (!this.hasLoaded) return;
    localStorage.setItem(SEEN_KEY, String(this.newest()));
    this.fill();
  }

  fill() {
    const seen = this.seen();
    const unseen = this.list().filter(({ seq }) => seq > seen);
    const [first] = unseen;
    setText(byId("alerts-new"), unseen.length > 99 ? "99+" : String(unseen.length));
    show(byId("alerts-new"), unseen.length > 0);
    byId("alerts-link").setAttribute(
      "aria-label",
      unseen.length > 0 ? `Alerts, ${unseen.length} new` : "Alerts",
    );
    show(byId("alert"), unseen.length > 0);
    if (first !== undefined) {
      const more = unseen.length > 1 ? ` And ${count(unseen.length - 1)} more.` : "";
      setText(byId("alert-text"), `${KINDS[first.kind] ?? first.kind}: ${sentence(first.message, false)}${more}`);
      byId("alert").dataset.kind = first.kind;
      byId("alert-link", HTMLAnchorElement).href =
        unseen.length > 1 ? "#/alerts" : pathOfAlert(first);
    }
    this.onChange();
  }
}
