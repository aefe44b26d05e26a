// @ts-check
// Numbers, times, states and runs as text.

/** @import { Run, RunState, ShownRun } from "./types.d.ts" */

/** @typedef {number | null | undefined} MaybeNumber null and undefined are written as a dash */

const DASH = "\u2013";
const THIN = "\u2009";
const DOT = " \u00b7 ";

/** @type {Record<RunState, string>} */
export const STATES = {
  queued: "Queued",
  starting: "Starting",
  running: "Running",
  waiting_for_teacher: "Waiting for teacher",
  stopping: "Stopping",
  stopped: "Stopped",
  succeeded: "Succeeded",
  failed: "Failed",
  interrupted: "Interrupted",
};

/**
 * What a trainer is doing, by `activity`.
 *
 * @type {Record<string, string>}
 */
export const ACTIVITIES = {
  starting: "start", step: "training steps", evaluation: "evaluation", checkpoint: "checkpoint",
  export: "export",
};

const ACTIVE = new Set(["starting", "running", "waiting_for_teacher", "stopping"]);

/** @param {Run} run */
export const isActive = (run) => ACTIVE.has(run.state);

/** @param {Run} run */
export const isActiveOrQueued = (run) => isActive(run) || run.state === "queued";

/** @param {Run} run */
export const resumesItself = (run) => run.resumes_at !== null || run.resumes_when !== null;

/**
 * Returns how long trainers have worked on the run; while one does, this grows between two views.
 *
 * @param {ShownRun} run
 * @param {number} now
 */
export function elapsed(run, now) {
  return run.elapsed_seconds + (isActive(run) ? Math.max(0, now - run.received) : 0);
}

/** @param {(string | number | false | null | undefined)[]} parts empty ones are left out */
export const joined = (...parts) => parts.filter((part) => part).join(DOT);

/** @param {MaybeNumber} value */
export function loss(value) {
  return value === null || value === undefined ? DASH : value.toFixed(4);
}

/** @param {MaybeNumber} value */
export function count(value) {
  if (value === null || value === undefined) return DASH;
  return Math.round(value).toLocaleString("en").replaceAll(",", THIN);
}

/**
 * 1234567 -> "1.2 M"
 * @param {MaybeNumber} value
 */
export function short(value) {
  if (value === null || value === undefined) return DASH;
  /** @type {[number, string][]} */
  const units = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];
  for (const [size, unit] of units) {
    if (value >= size) {
      const scaled = value / size;
      return `${scaled.toFixed(scaled < 10 ? 1 : 0)}${THIN}${unit}`;
    }
  }
  return String(Math.round(value));
}

/** @param {MaybeNumber} value */
export function percent(value) {
  if (value === null || value === undefined) return DASH;
  return `${(100 * value).toFixed(value < 0.0995 && value > 0 ? 1 : 0)}${THIN}%`;
}

/**
 * 0.5234 -> "52.3 %", for shares that are compared
 * @param {MaybeNumber} value
 */
export function share(value) {
  return value === null || value === undefined ? DASH : `${(100 * value).toFixed(1)}${THIN}%`;
}

/**
 * 1234567 -> "1.2 MB"
 * @param {MaybeNumber} bytes
 */
export function size(bytes) {
  if (bytes === null || bytes === undefined) return DASH;
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  const thousands = Math.floor(Math.log10(Math.max(1, bytes)) / 3);
  const power = Math.min(units.length - 1, Math.max(0, thousands));
  const scaled = bytes / 1000 ** power;
  return `${scaled.toFixed(power > 0 && scaled < 9.95 ? 1 : 0)}${THIN}${units[power]}`;
}

/**
 * 0.0123 -> "12 ms"
 * @param {MaybeNumber} seconds
 */
export function wait(seconds) {
  if (seconds === null || seconds === undefined) return DASH;
  if (seconds < 0.9995) return `${Math.round(1000 * seconds)}${THIN}ms`;
  if (seconds < 99.5) return `${seconds.toFixed(seconds < 9.95 ? 1 : 0)}${THIN}s`;
  return duration(seconds);
}

/**
 * 3725 -> "1:02:05"
 * @param {number} seconds
 */
export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
  const padded = String(whole % 60).padStart(2, "0");
  if (hours === 0) return `${minutes}:${padded}`;
  return `${hours}:${String(minutes).padStart(2, "0")}:${padded}`;
}

/**
 * Returns how long ago that was, roughly: "3 min ago".
 *
 * @param {number} unixSeconds
 * @param {number} now
 */
export function ago(unixSeconds, now) {
  const seconds = Math.max(0, now - unixSeconds);
  return seconds < 5 ? "just now" : `${roughly(seconds)} ago`;
}

/**
 * 7400 -> "2.1 h"
 * @param {number} seconds
 */
export function roughly(seconds) {
  /** @type {[number, string][]} */
  const units = [[86400, "d"], [3600, "h"], [60, "min"]];
  for (const [size, unit] of units) {
    if (seconds >= size) {
      const amount = seconds / size;
      return `${amount.toFixed(amount < 9.95 && unit !== "min" ? 1 : 0)}${THIN}${unit}`;
    }
  }
  return `${Math.round(seconds)}${THIN}s`;
}

/**
 * Returns when the run will be done, or "" if that is not known, as without a heartbeat.
 *
 * @param {ShownRun} run
 * @param {number} now
 */
export function eta(run, now) {
  if (run.eta_seconds === null || run.stale_since !== null) return "";
  const left = run.eta_seconds - Math.max(0, now - run.received);
  return left < 1 ? "about done" : `${roughly(left)} left`;
}

/**
 * Returns the validation loss with where it was measured and the lowest one. What was measured
 * before the first step is no result of training.
 *
 * @param {Run} run
 * @returns {{text: string, note: string, isBest: boolean}}
 */
export function validation(run) {
  const { latest } = run;
  const [value, at] = [latest["loss/val"], latest["loss/val_step"] ?? null];
  const [best, bestAt] = [latest["loss/val_best"] ?? null, latest["loss/val_best_step"] ?? null];
  if (at === 0) return { text: DASH, note: `untrained ${loss(value)}`, isBest: false };
  const isBest = bestAt !== null && bestAt === at;
  // Breaks, if it must, between the two values.
  const lowest = (bestAt === 0 ? `untrained ${loss(best)}` : `best ${loss(best)} at ${count(bestAt)}`)
    .replaceAll(" ", "\u00a0");
  if (value === null || value === undefined) {
    return { text: DASH, note: bestAt === null ? "" : lowest, isBest };
  }
  if (at === null) return { text: loss(value), note: "", isBest };
  if (bestAt === null) return { text: loss(value), note: `at ${count(at)}`, isBest };
  const note = isBest ? `at ${count(at)}, the best` : `at\u00a0${count(at)}; ${lowest}`;
  return { text: loss(value), note, isBest };
}

/** @param {number} unixSeconds */
export function clockTime(unixSeconds) {
  return new Date(1000 * unixSeconds).toLocaleTimeString("en-GB");
}

/** @param {number} unixSeconds */
export function dateTime(unixSeconds) {
  return new Date(1000 * unixSeconds).toLocaleString("en-GB", {
    day: "numeric", month: "short", hour: "2-digit", minute: "2-digit",
  });
}

/** @param {Run} run */
export function learnsFrom(run) {
  if (run.representation === null) return "Labels only";
  /** @type {Record<string, string>} */
  const numbered = { top_k: `top ${run.top_k}`, sampled: `sampled ${run.num_draws}` };
  const what = capitalized(numbered[run.representation] ?? run.representation);
  return joined(what, `\u03b1\u00a0${run.alpha}`, `T\u00a0${run.temperature}`);
}

/**
 * Returns what the student is made of: a whole model, some of its layers, or adapters on either.
 *
 * @param {Run} run
 */
export function studentOf(run) {
  const every = run.keep_every_nth_layer;
  const model = run.student ?? "unknown";
  const base = every === null ? model : `every ${ordinal(every)} layer of ${model}`;
  if (run.lora_rank !== null) return `LoRA ${run.lora_rank} on ${base}`;
  return every === null ? base : capitalized(base);
}

/**
 * Returns where the trained student is, on the control plane's machine.
 *
 * @param {string} folder of the run
 */
export const exportOf = (folder) => `${folder}/export`;

/** @param {number} number */
function ordinal(number) {
  const isTeen = Math.floor(number / 10) % 10 === 1;
  const suffix = ["th", "st", "nd", "rd"][isTeen ? 0 : number % 10] ?? "th";
  return `${number}${suffix}`;
}

/** @param {string} text */
const capitalized = (text) => text[0].toUpperCase() + text.slice(1);

/**
 * Returns what to know about the run's state, or "" if the state alone says it all.
 *
 * @param {Run} run
 * @param {number} now
 */
export function explanation(run, now) {
  if (run.resumes_at !== null) {
    const seconds = Math.ceil(run.resumes_at - now);
    const when = seconds > 0 ? `in ${seconds} s` : "as soon as a device is free";
    return `${sentence(run.message) || "The run was interrupted."} Resumes automatically ${when}.`;
  }
  if (run.resumes_when !== null) {
    const what = sentence(run.message) || "The run was interrupted.";
    return `${what} Resumes by itself when ${sentence(run.resumes_when, false)}`;
  }
  if (run.stale_since !== null) {
    return `No heartbeat from the trainer since ${clockTime(run.stale_since)}.`;
  }
  if (run.stop_at === "checkpoint" && isActive(run)) return joined("Stops at its next checkpoint.", sentence(run.message));
  if (run.stalled_since !== null) {
    const since = `${clockTime(run.stalled_since)}, ${ago(run.stalled_since, now)}`;
    const what = run.activity === null ? "" : ` in its ${ACTIVITIES[run.activity] ?? run.activity}`;
    return `Stalled: the trainer is alive, but has made no progress${what} since ${since}.`;
  }
  if (run.state === "queued") {
    if (run.queue_position === null) return sentence(run.message);
    const place = run.queue_position === 1 ? "Next" : `Number ${count(run.queue_position)}`;
    return `${place} in the queue. ${sentence(run.message) || "Waiting for a free device."}`;
  }
  return sentence(run.message);
}

/**
 * Returns the message with a capital and a full stop. A name at its start stays as it is:
 * "data.path: ...", "trainer.log ...", "loss/val ...".
 *
 * @param {string | null} message
 * @param {boolean} begins whether it stands at the start of a sentence
 */
export function sentence(message, begins = true) {
  if (!message) return "";
  const isName = /^\w*[._/]\w/.test(message);
  const text = isName || !begins ? message : capitalized(message);
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
