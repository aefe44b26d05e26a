// @ts-check
// What to know of a run now, as names and values.

import { metricOf, valueOf } from "../../charts/metrics.js";
import {
  ago, count, dateTime, duration, elapsed, exportOf, joined, learnsFrom, percent, size,
  studentOf, validation,
} from "../../format.js";

/** @import { ShownRun } from "../../types.d.ts" */

/**
 * Returns [name, value] of each fact.
 *
 * @param {ShownRun} run
 * @param {string | null} folder of the run, once it is known
 * @param {number} now
 * @returns {[string, string][]}
 */
export function factsOf(run, folder, now) {
  const isTrained = run.latest["loss/val_step"] !== 0;
  const latest = (/** @type {string} */ key) =>
    valueOf(metricOf(key), run, isTrained ? run.latest[key] : null);
  const hasTeacher = run.representation !== null;
  const { text, note } = validation(run);
  /** @type {[string, string][]} */
  const facts = [
    ["Validation loss", joined(text, note)],
    ["KL to teacher, T = 1", latest("val/kl")],
    ["Agreement", latest("val/top1_agreement")],
    ["Student", studentOf(run)],
    ["Learns from", learnsFrom(run)],
    ["Teacher", run.teacher ?? "none"],
    ["Data", run.dataset ?? "synthetic"],
    ["Device", devicesOf(run)],
    ["Doing", run.activity === null ? "\u2013" : DOING[run.activity] ?? run.activity],
    ...speedOf(run),
    ["Teacher wait", hasTeacher ? percent(run.teacher_wait_share) : "\u2013"],
    ["Elapsed", duration(elapsed(run, now))],
    ["Checkpoint", checkpointOf(run, now)],
    ["Attempt", joined(
      String(run.attempt || "\u2013"), run.restarts > 0 && `${run.restarts} automatic restarts`,
      run.heals > 0 && `went on by itself ${run.heals} times`,
    )],
    ["Size on disk", size(run.disk_bytes)],
    ["Created", dateTime(run.created_at)],
  ];
  if (run.state === "succeeded" && folder) facts.push(["Export", exportOf(folder)]);
  return facts;
}

/**
 * @param {ShownRun} run
 * @returns {[string, string][]} nothing unless it trains
 */
const speedOf = (run) => run.tokens_per_second === null
  ? []
  : [["Tokens/s", count(run.tokens_per_second)]];

/** @type {Record<string, string>} by `activity` */
const DOING = {
  starting: "starting", step: "training steps", evaluation: "evaluating",
  checkpoint: "writing a checkpoint", export: "exporting the student",
};

/**
 * "cuda:0, cuda:1", "cpu \u00b7 2 threads"
 *
 * @param {ShownRun} run
 */
function devicesOf({ slots, device, threads }) {
  const each = slots.length > 1 ? " each" : "";
  const cpus = threads === 1 ? "1 thread" : `${count(threads)} threads`;
  return joined(slots.join(", ") || device, threads !== null && `${cpus}${each}`) || "\u2013";
}

/**
 * @param {ShownRun} run
 * @param {number} now
 */
function checkpointOf({ checkpoint_step: step, checkpoint_at: at }, now) {
  if (step === null) return "none yet";
  return joined(`step ${count(step)}`, at !== null && ago(at, now));
}
