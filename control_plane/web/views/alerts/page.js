// @ts-check
// The page of the recent alerts: what happened, whether the webhook got it, and the notifications
// of this browser.

import { post } from "../../api.js";
import { make, setText, show } from "../../dom.js";
import { ago, clockTime, count, dateTime, sentence } from "../../format.js";
import { KINDS, pathOfAlert } from "./alerts.js";
import { standing, turnOff, turnOn } from "./notifications.js";

/** @import { Alert, AlertTest } from "../../types.d.ts" */
/** @import { AlertCenter } from "./alerts.js" */
/** @import { Standing } from "./notifications.js" */

/** @type {Record<Standing, string>} */
const SAID = {
  on: "Notifications are on in this browser, as long as the page is open, also in the background.",
  off: "Notifications are off in this browser.",
  denied:
    "This browser denies notifications for this page. Allow them in the settings of the site, then load the page again.",
  insecure:
    "A browser shows notifications only of a page that it got over https or from localhost.",
  unsupported: "This browser has no notifications.",
};
const HEADS = ["When", "What", "Run", "Message", "Webhook"];

export class AlertsPage {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.shown = "";
    /** @type {AlertCenter | null} */
    this.center = null;
    this.isOpen = false;
    this.standing = make("p");
    this.standing.setAttribute("role", "status");
    this.toggle = make("button", { type: "button", className: "quiet" });
    this.receiver = make("p");
    this.test = make("button", { type: "button", className: "quiet", textContent: "Send a test" });
    this.outcome = make("p", { className: "muted" });
    this.outcome.setAttribute("role", "status");
    this.body = make("tbody");
    this.table = make(
      "div",
      { className: "card table" },
      make(
        "table",
        { className: "alerts" },
        make(
          "thead",
          {},
          make("tr", {}, ...HEADS.map((textContent) => make("th", { scope: "col", textContent }))),
        ),
        this.body,
      ),
    );
    this.none = make("p", {
      className: "card part muted",
      textContent:
        "No alerts yet. There is one when a run fails, stalls, diverges, finishes or waits for too long, and when the disk is nearly full.",
    });
    element.append(
      make("p", { className: "trail" }, make("a", { href: "#/", textContent: "All runs" })),
      make("h1", { textContent: "Alerts" }),
      make(
        "section",
        { className: "card part ways" },
        make("div", { className: "way" }, this.standing, this.toggle),
        make("div", { className: "way" }, this.receiver, this.test, this.outcome),
      ),
      this.table,
      this.none,
    );
    this.toggle.addEventListener("click", async () => {
      if (standing() === "on") turnOff();
      else await turnOn();
      this.fillStanding();
    });
    this.test.addEventListener("click", () => this.sendTest());
  }

  /** @param {AlertCenter} center */
  show(center) {
    this.center = center;
    this.isOpen = true;
    this.shown = "";
    center.see();
    center.load().catch(() => {}); // the banner says if the connection is lost
    this.fill();
  }

  hide() {
    this.isOpen = false;
  }

  /** Called when there are other alerts, or other deliveries. */
  fill() {
    const { center } = this;
    if (center === null || !this.isOpen) return;
    if (center.hasLoaded && center.newest() > center.seen()) {
      center.see(); // which calls this again
      return;
    }
    this.fillStanding();
    setText(
      this.receiver,
      center.receiver === null
        ? "No webhook: start the control plane with --alert-webhook-file to have alerts sent to one."
        : `Alerts are sent to ${center.receiver}.`,
    );
    show(this.test, center.receiver !== null);
    const alerts = center.list();
    show(this.table, alerts.length > 0);
    show(this.none, alerts.length === 0);
    const text = JSON.stringify([alerts, center.receiver]);
    if (text === this.shown) return;
    this.shown = text;
    this.body.replaceChildren(...alerts.map((alert) => newRow(alert, center.receiver !== null)));
  }

  fillStanding() {
    const now = standing();
    setText(this.standing, SAID[now]);
    setText(this.toggle, now === "on" ? "Turn off" : "Notify me in this browser");
    show(this.toggle, now === "on" || now === "off");
  }

  async sendTest() {
    this.test.disabled = true;
    setText(this.outcome, "Sending \u2026");
    try {
      /** @type {AlertTest} */
      const { delivered, status, error, said } = await post("/alerts/test");
      setText(
        this.outcome,
        delivered
          ? "It was delivered."
          : `It was not delivered: ${sentence(error ?? said ?? `status ${status}`, false)}`,
      );
    } catch (error) {
      setText(this.outcome, error instanceof Error ? error.message : String(error));
    } finally {
      this.test.disabled = false;
    }
  }
}

/**
 * @param {Alert} alert
 * @param {boolean} hasReceiver
 */
function newRow(alert, hasReceiver) {
  const now = Date.now() / 1000;
  const run =
    alert.run_id === null
      ? "\u2013"
      : make("a", {
          href: pathOfAlert(alert),
          textContent: alert.name ?? alert.run_id,
          title: alert.run_id,
        });
  const time = make("time", {
    textContent: dateTime(alert.at),
    title: `${clockTime(alert.at)}, ${ago(alert.at, now)}`,
  });
  return make(
    "tr",
    { dataset: { kind: alert.kind, seq: String(alert.seq) } },
    make("td", {}, time),
    make(
      "td",
      {},
      make("span", {
        className: "pill",
        dataset: { kind: alert.kind },
        textContent: KINDS[alert.kind] ?? alert.kind,
      }),
    ),
    make("th", { scope: "row" }, run),
    make("td", { textContent: sentence(alert.message, false) }),
    make("td", { className: "muted", textContent: deliveryOf(alert, hasReceiver) }),
  );
}

/**
 * @param {Alert} alert
 * @param {boolean} hasReceiver
 */
function deliveryOf(
  { delivered_at: at, attempts, next_try_at: next, last_error: error },
  hasReceiver,
) {
  if (at !== null) return `delivered ${clockTime(at)}`;
  const tries = attempts === 1 ? "1 attempt" : `${count(attempts)} attempts`;
  if (next !== null)
    return attempts === 0 ? "being sent" : `${tries}, next ${clockTime(next)}: ${error ?? ""}`;
  if (attempts > 0) return `given up after ${tries}: ${error ?? ""}`;
  return hasReceiver ? "not sent" : "\u2013";
}
