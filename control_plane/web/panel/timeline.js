// What happened to a run, in words: the newest first, what repeats itself in one line. Each line
// opens to the fields as the trainer wrote them.

import { make } from "../dom.js";
import {
  STATES, clockTime, count, dateTime, exportOf, joined, loss, percent, sentence, size, wait,
} from "../format.js";

// Kinds that come in runs: [of several, what the last of them is].
const REPEATED = {
  checkpoint: ["checkpoints", (details) => `last at ${step(details)}`],
  step_skipped: ["steps skipped", (details) => `last at ${step(details)}; ${NOT_FINITE}`],
};
const NOT_FINITE = "loss or gradient was not finite";

// Kind -> [what happened, the values that matter]. A kind that is missing here says all its values.
const WORDS = {
  assembled: (details) => [
    details.step > 0 ? `Assembled, goes on from ${step(details)}` : "Assembled",
    assembled(details),
  ],
  checkpoint: (details) => ["Checkpoint", `at ${step(details)}`],
  checkpoint_set_aside: (details) => ["Broken checkpoint set aside", `${details.path}`],
  exported: (details, _, folder) => [
    "Exported",
    joined(`of ${step(details)}`, known(details.validation_loss, (value) => `validation loss ${loss(value)}`), exportOf(folder)),
  ],
  left_out: (details, message) => ["Not measured", `${details.metric}: ${message}`],
  metrics_dropped: (details, message) => ["Metrics dropped", joined(known(details.lines, (lines) => `${count(lines)} lines`), message)],
  rank_lost: (details) => ["A process was lost", joined(details.what, known(details.restart, (number) => `restart ${count(number)}`))],
  step_skipped: (details) => ["Step skipped", `${step(details)}; ${NOT_FINITE}`],
  teacher_bound: (_, message) => ["Waited for its teacher", sentence(message)],
};

export class Timeline {
  constructor(list) {
    this.list = list;
    this.text = "";
  }

  clear() {
    this.text = "";
    this.list.replaceChildren();
  }

  // history: oldest first, as the control plane says it. folder: the run's. What is open stays so.
  show(history, folder) {
    const text = JSON.stringify(history);
    if (text === this.text) return;
    this.text = text;
    const open = new Set([...this.list.querySelectorAll("details[open]")].map((part) => part.dataset.key));
    const items = folded(history).map((entries) => item(entries, folder));
    for (const part of items) part.lastChild.open = open.has(part.lastChild.dataset.key);
    this.list.replaceChildren(...items.reverse());
  }
}

// Returns lists of entries, one a line.
function folded(history) {
  const lines = [];
  for (const entry of history) {
    const before = lines.at(-1);
    if (before !== undefined && Object.hasOwn(REPEATED, entry.kind) && before[0].kind === entry.kind) before.push(entry);
    else lines.push([entry]);
  }
  return lines;
}

function item(entries, folder) {
  const [first, last] = [entries[0], entries.at(-1)];
  const [title, text] = entries.length > 1 ? severalTimes(entries) : words(last, folder);
  const time = make("time", { textContent: clockTime(last.at), title: dateTime(last.at) });
  const summary = make("summary", {}, make("b", { textContent: title }), text ? ` \u2013 ${text}` : "");
  const raw = make("pre", { textContent: entries.map(rawText).join("\n") });
  // A line that grows keeps its key: that of its first entry.
  const key = `${first.kind} ${first.at} ${first.state ?? ""}`;
  return make("li", { dataset: { kind: first.kind } }, time, make("details", { dataset: { key } }, summary, raw));
}

function severalTimes(entries) {
  const [name, text] = REPEATED[entries[0].kind];
  return [`${count(entries.length)} ${name}`, text(entries.at(-1).details)];
}

function words(entry, folder) {
  if (entry.kind === "state") return [STATES[entry.state], stateText(entry)];
  const said = Object.hasOwn(WORDS, entry.kind) && WORDS[entry.kind](entry.details, entry.message ?? "", folder);
  if (said) return said;
  const kind = entry.kind.replaceAll("_", " ");
  const values = Object.entries(entry.details)
    .filter(([, value]) => value !== null && typeof value !== "object")
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${formatted(name, value)}`);
  return [kind[0].toUpperCase() + kind.slice(1), joined(entry.message, ...values)];
}

function stateText(entry) {
  const attempt = entry.state === "starting" && entry.attempt > 1 ? `attempt ${count(entry.attempt)}` : "";
  return joined(attempt, sentence(entry.message));
}

function assembled(details) {
  const { memory = {}, ranks } = details;
  const { free, warning, ...needed } = memory ?? {};
  const bytes = Object.values(needed).filter(Number.isFinite).reduce((sum, part) => sum + part, 0);
  return joined(
    details.device && (ranks > 1 ? `${count(ranks)} processes on ${details.device}` : details.device),
    known(details.parameters, (number) => `${count(number)} parameters`),
    known(details.training_rows, (rows) => `${count(rows)} rows to learn`),
    known(details.validation_rows, (rows) => `${count(rows)} to validate`),
    details.teacher && `teacher ${details.teacher}`,
    bytes > 0 && `needs ${size(bytes)}${known(free, (value) => ` of ${size(value)} free`)}`,
    warning,
  );
}

function formatted(name, value) {
  if (!Number.isFinite(value)) return String(value);
  if (name.endsWith("bytes")) return size(value);
  if (name.endsWith("seconds")) return wait(value);
  if (name.endsWith("share")) return percent(value);
  return Number.isInteger(value) ? count(value) : String(+value.toPrecision(4));
}

const known = (value, format) => (Number.isFinite(value) ? format(value) : "");
const step = (details) => `step ${Number.isFinite(details.step) ? count(details.step) : details.step}`;

// The entry without what says nothing.
function rawText({ details, ...entry }) {
  const fields = Object.entries({ ...entry, ...details }).filter(([, value]) => value !== null);
  return JSON.stringify(Object.fromEntries(fields), null, fields.length > 4 ? 2 : undefined);
}
