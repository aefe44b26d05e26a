// @ts-check
// Notifications of the browser: asked for by a button, one per alert, also if several tabs are open
// or none is in front.

/** @import { Alert } from "../../types.d.ts" */

const WANTED_KEY = "lectern-notify";
const NOTIFIED_KEY = "lectern-notified";

/** @typedef {"on" | "off" | "denied" | "insecure" | "unsupported"} Standing */

/** @returns {Standing} */
export function standing() {
  if (!globalThis.isSecureContext) return "insecure";
  if (!("Notification" in globalThis)) return "unsupported";
  if (Notification.permission === "denied") return "denied";
  const isWanted = localStorage.getItem(WANTED_KEY) !== null;
  return isWanted && Notification.permission === "granted" ? "on" : "off";
}

/** Asks the user through the browser; called at a click only. */
export async function turnOn() {
  if ((await Notification.requestPermission()) === "granted")
    localStorage.setItem(WANTED_KEY, "yes");
}

export function turnOff() {
  localStorage.removeItem(WANTED_KEY);
}

/**
 * Shows a notification, unless they are off or another tab has shown this alert.
 *
 * @param {Alert} alert
 * @param {string} title
 * @param {string} path of what a click opens
 */
export function notify(alert, title, path) {
  if (standing() !== "on" || alert.seq <= Number(localStorage.getItem(NOTIFIED_KEY) ?? 0)) return;
  localStorage.setItem(NOTIFIED_KEY, String(alert.seq));
  try {
    // Two of the same tag are one.
    const shown = new Notification(title, {
      body: alert.message,
      tag: `lectern-alert-${alert.seq}`,
    });
    shown.addEventListener("click", () => {
      focus();
      location.hash = path;
      shown.close();
    });
  } catch {
    // Some phones only let a service worker show them; the banner says it all the same.
  }
}
