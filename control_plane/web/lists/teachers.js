// The teacher cards: what each teacher is, and what it does now.

import { get } from "../api.js";
import { byId, make, setText, show } from "../dom.js";
import { clockTime, count, duration, joined, percent, short, size } from "../format.js";
import { Accounts } from "./accounts.js";

const EVERY_MS = 3000;
const cards = new Map();

export function watchTeachers() {
  const look = async () => {
    if (!document.hidden) {
      try {
        render((await get("/teachers")).teachers);
      } catch {
        // The banner says when the connection is lost.
      }
    }
    setTimeout(look, EVERY_MS);
  };
  look();
}

function render(teachers) {
  const section = byId("teachers");
  const seen = new Set(teachers.map((teacher) => teacher.address));
  for (const [address, card] of cards) {
    if (!seen.has(address)) {
      card.element.remove();
      cards.delete(address);
    }
  }
  for (const teacher of teachers) {
    if (!cards.has(teacher.address)) {
      cards.set(teacher.address, newCard());
      section.append(cards.get(teacher.address).element);
    }
    fill(cards.get(teacher.address), teacher);
  }
}

function newCard() {
  const parts = {
    dot: make("i", { className: "dot" }),
    name: make("h2"),
    what: make("p", { className: "muted" }),
    warning: make("p", { className: "warning" }),
    problem: make("p", { className: "bad" }),
    offers: make("p", { className: "chips" }),
    figures: FIGURES.map(([label, text]) => figure(label, text)),
    facts: FACTS.map(([label, text]) => fact(label, text)),
    accounts: new Accounts(),
  };
  parts.element = make(
    "article",
    { className: "card teacher" },
    make("div", { className: "about" },
      make("p", { className: "kicker" }, parts.dot, "Teacher"),
      parts.name, parts.what, parts.warning, parts.problem, parts.offers),
    make("div", { className: "figures" }, ...parts.figures.map((entry) => entry.element)),
    make("dl", { className: "work" }, ...parts.facts.map((entry) => entry.element)),
    parts.accounts.element,
  );
  return parts;
}

// Each of these is [label, text of a teacher that answers]; an empty text is not shown.
const FIGURES = [
  ["tokens/s, last minute", (teacher) => short(teacher.tokens_per_second)],
  ["in the queue", (teacher) => `${(teacher.queued_requests ?? 0) + (teacher.running_requests ?? 0)}`],
  ["device in use", (teacher) => known(teacher.device_utilization, percent)],
  ["from the cache", (teacher) => known(teacher.cache?.hit_share, percent)],
  ["tokens scored", (teacher) => short(teacher.scored_tokens)],
];
const FACTS = [
  ["Measured at its start", (teacher) => known(teacher.measured_tokens_per_second, (value) => `${short(value)} tokens/s`)],
  ["Waiting", (teacher) => teacher.queued_tokens ? `${short(teacher.queued_tokens)} tokens` : ""],
  ["Cache", (teacher) => teacher.cache ? filled(teacher.cache.used_bytes, teacher.cache.capacity_bytes) : ""],
  ["On disk", (teacher) => teacher.cache?.disk_capacity_bytes
    ? filled(teacher.cache.disk_used_bytes, teacher.cache.disk_capacity_bytes) : ""],
  ["Forwards", (teacher) => known(teacher.forwards, short)],
  ["Padding", (teacher) => known(teacher.padding_share, percent)],
  ["Sent", (teacher) => size(teacher.sent_bytes)],
  ["Up for", (teacher) => known(teacher.uptime_seconds, duration)],
  ["Turned away", (teacher) => teacher.refused_requests ? count(teacher.refused_requests) : ""],
  ["Failed", (teacher) => teacher.failed_requests ? count(teacher.failed_requests) : ""],
];

const known = (value, format) => (value === null || value === undefined ? "" : format(value));
const filled = (used, capacity) => (capacity ? `${size(used)} of ${size(capacity)}` : "none");

function figure(label, text) {
  const value = make("b");
  return { value, text, element: make("div", {}, value, make("span", { textContent: label })) };
}

function fact(label, text) {
  const value = make("dd");
  return { value, text, element: make("div", {}, make("dt", { textContent: label }), value) };
}

function fill(card, teacher) {
  card.element.dataset.reachable = teacher.reachable;
  card.element.dataset.address = teacher.address;
  setText(card.name, teacher.model ?? teacher.address);
  const parameters = teacher.num_parameters ? `${short(teacher.num_parameters)} parameters` : "";
  const quantization = teacher.quantization === "none" ? "" : teacher.quantization;
  setText(card.what, joined(
    teacher.device, teacher.dtype, quantization, teacher.mode, parameters,
    teacher.model && teacher.address,
  ));
  setText(card.warning, teacher.warning ?? "");
  show(card.warning, teacher.reachable && teacher.warning !== null);
  const since = teacher.seen_at === null ? "" : ` Last heard of at ${clockTime(teacher.seen_at)}.`;
  setText(card.problem, teacher.reachable ? "" : `Not reachable: ${teacher.problem}.${since}`);
  show(card.problem, !teacher.reachable);
  for (const { value, text, element } of [...card.figures, ...card.facts]) {
    const said = teacher.reachable ? text(teacher) : "";
    setText(value, said);
    show(element, said !== "");
  }
  card.accounts.render(teacher.reachable ? teacher.accounts : [], teacher.num_accounts);
  const offered = teacher.representations.map((entry) => entry.name + entry.offered + entry.reason).join();
  if (card.offered !== offered) {
    card.offered = offered;
    card.offers.replaceChildren(...teacher.representations
      .filter((entry) => entry.offered || entry.reason)
      .map((entry) => make("span", {
        className: entry.offered ? "chip" : "chip off",
        textContent: entry.name,
        title: entry.offered ? "offered" : `not offered: ${entry.reason}`,
      })));
  }
}
