// @ts-check
// The teachers: what each is and how busy it is, in one line that opens to everything.

import { get } from "../../api.js";
import { byId, make, placeRows, setText, show } from "../../dom.js";
import { clockTime, count, duration, joined, percent, short, size } from "../../format.js";
import { Accounts } from "./accounts.js";

/** @import { Teacher, Teachers } from "../../types.d.ts" */

/**
 * @typedef {[label: string, text: (teacher: Teacher) => string]} Figure an empty text is not shown
 * @typedef {{element: HTMLElement, value: HTMLElement, text: (teacher: Teacher) => string}} Cell
 * @typedef {ReturnType<typeof newCard>} Card
 */

const EVERY_MS = 3000;
const OPEN_KEY = "lectern-teacher-open";

/** @type {Map<string, Card>} by address */
const cards = new Map();

/** Shows the teachers and keeps them up to date. */
export function watchTeachers() {
  const refresh = async () => {
    if (!document.hidden) {
      try {
        /** @type {Teachers} */
        const { teachers } = await get("/teachers");
        render(teachers);
      } catch {
        // The banner says if the connection is lost.
      }
    }
    setTimeout(refresh, EVERY_MS);
  };
  refresh();
}

/** @param {Teacher[]} teachers */
function render(teachers) {
  placeRows(byId("teachers"), cards, teachers, (teacher) => teacher.address, newCard);
  for (const teacher of teachers) {
    const card = cards.get(teacher.address);
    if (card) fill(card, teacher);
  }
}

function newCard() {
  const parts = {
    name: make("h2"),
    line: make("span", { className: "line" }), // what it does now, also when folded
    what: make("p", { className: "muted" }),
    warning: make("span", { className: "warning" }),
    problem: make("span", { className: "bad" }),
    chips: make("p", { className: "chips" }),
    figures: FIGURES.map(newFigure),
    facts: FACTS.map(newFact),
    accounts: new Accounts(),
    representations: "", // what the chips show now
  };
  const element = make(
    "details",
    { className: "card teacher", open: localStorage.getItem(OPEN_KEY) !== null },
    make("summary", {},
      make("span", { className: "kicker" }, make("i", { className: "dot" }), "Teacher"),
      parts.name, parts.line, parts.warning, parts.problem),
    make("div", { className: "more-of-it" },
      make("div", { className: "about" }, parts.what, parts.chips),
      make("div", { className: "figures" }, ...parts.figures.map((figure) => figure.element)),
      make("dl", { className: "work" }, ...parts.facts.map((fact) => fact.element)),
      parts.accounts.element),
  );
  element.addEventListener("toggle", () => {
    if (element.open) localStorage.setItem(OPEN_KEY, "yes");
    else localStorage.removeItem(OPEN_KEY);
  });
  return { ...parts, element };
}

/**
 * @param {number | null | undefined} value
 * @param {(value: number) => string} format
 */
const ifKnown = (value, format) => (value === null || value === undefined ? "" : format(value));

/**
 * @param {number} used
 * @param {number} capacity
 */
const filled = (used, capacity) => (capacity ? `${size(used)} of ${size(capacity)}` : "none");

/** @type {Figure[]} */
const FIGURES = [
  ["tokens/s, last minute", (teacher) => short(teacher.tokens_per_second)],
  [
    "requests in flight",
    (teacher) => String((teacher.queued_requests ?? 0) + (teacher.running_requests ?? 0)),
  ],
  ["device utilization", (teacher) => ifKnown(teacher.device_utilization, percent)],
  ["cache hits", (teacher) => ifKnown(teacher.cache?.hit_share, percent)],
  ["tokens scored", (teacher) => short(teacher.scored_tokens)],
];

/** @type {Figure[]} */
const FACTS = [
  [
    "Measured at startup",
    (teacher) =>
      ifKnown(teacher.measured_tokens_per_second, (value) => `${short(value)} tokens/s`),
  ],
  [
    "Queued",
    (teacher) => teacher.queued_tokens ? `${short(teacher.queued_tokens)} tokens` : "",
  ],
  [
    "Cache",
    ({ cache }) => cache ? filled(cache.used_bytes, cache.capacity_bytes) : "",
  ],
  [
    "Disk cache",
    ({ cache }) => cache?.disk_capacity_bytes
      ? filled(cache.disk_used_bytes, cache.disk_capacity_bytes)
      : "",
  ],
  ["Forward passes", (teacher) => ifKnown(teacher.forwards, short)],
  ["Padding", (teacher) => ifKnown(teacher.padding_share, percent)],
  ["Sent", (teacher) => size(teacher.sent_bytes)],
  ["Uptime", (teacher) => ifKnown(teacher.uptime_seconds, duration)],
  [
    "Rejected requests",
    (teacher) => teacher.refused_requests ? count(teacher.refused_requests) : "",
  ],
  [
    "Failed requests",
    (teacher) => teacher.failed_requests ? count(teacher.failed_requests) : "",
  ],
];

/**
 * @param {Figure} figure
 * @returns {Cell}
 */
function newFigure([label, text]) {
  const value = make("b");
  return { element: make("div", {}, value, make("span", { textContent: label })), value, text };
}

/**
 * @param {Figure} fact
 * @returns {Cell}
 */
function newFact([label, text]) {
  const value = make("dd");
  return { element: make("div", {}, make("dt", { textContent: label }), value), value, text };
}

/**
 * @param {Card} card
 * @param {Teacher} teacher
 */
function fill(card, teacher) {
  const { reachable } = teacher;
  card.element.dataset.reachable = String(reachable);
  card.element.dataset.address = teacher.address;
  setText(card.name, teacher.model ?? teacher.address);
  setText(card.what, joined(
    teacher.device,
    (teacher.tensor_parallel ?? 1) > 1 && `tensor parallel over ${teacher.tensor_parallel} ranks`,
    teacher.dtype,
    teacher.quantization !== "none" && teacher.quantization,
    teacher.mode,
    teacher.num_parameters && `${short(teacher.num_parameters)} parameters`,
    teacher.model && teacher.address,
  ));
  const inFlight = (teacher.queued_requests ?? 0) + (teacher.running_requests ?? 0);
  setText(card.line, reachable
    ? joined(
      `${short(teacher.tokens_per_second)} tokens/s`,
      `${inFlight} in flight`,
      ifKnown(teacher.cache?.hit_share, (value) => `cache ${percent(value)}`),
      teacher.runs.length > 0
        && (teacher.runs.length === 1 ? "1 active run" : `${teacher.runs.length} active runs`),
    )
    : "");
  setText(card.warning, teacher.warning ?? "");
  show(card.warning, reachable && teacher.warning !== null);
  const since = teacher.seen_at === null ? "" : ` Last seen at ${clockTime(teacher.seen_at)}.`;
  setText(card.problem, reachable ? "" : `Not reachable: ${teacher.problem}.${since}`);
  show(card.problem, !reachable);
  for (const { element, value, text } of [...card.figures, ...card.facts]) {
    const shown = reachable ? text(teacher) : "";
    setText(value, shown);
    show(element, shown !== "");
  }
  card.accounts.update(reachable ? teacher.accounts : [], teacher.num_accounts);
  const representations = JSON.stringify(teacher.representations);
  if (card.representations !== representations) {
    card.representations = representations;
    card.chips.replaceChildren(...teacher.representations
      .filter(({ offered, reason }) => offered || reason)
      .map(({ name, offered, reason }) => make("span", {
        className: offered ? "chip" : "chip off",
        textContent: name,
        title: offered ? "Offered" : `Not offered: ${reason}`,
      })));
  }
}
