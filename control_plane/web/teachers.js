// The teacher cards: what each teacher is, and what it does now.

import { get } from "./api.js";
import { byId, make, setText, show } from "./dom.js";
import { clockTime, joined, percent, short } from "./format.js";

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
    problem: make("p", { className: "bad" }),
    offers: make("p", { className: "chips" }),
    speed: make("b"),
    queue: make("b"),
    busy: make("b"),
    busyBox: null,
    scored: make("b"),
  };
  const figure = (value, label) => make("div", {}, value, make("span", { textContent: label }));
  parts.busyBox = figure(parts.busy, "device in use");
  parts.element = make(
    "article",
    { className: "card teacher" },
    make("div", { className: "about" },
      make("p", { className: "kicker" }, parts.dot, "Teacher"),
      parts.name, parts.what, parts.problem, parts.offers),
    make("div", { className: "figures" },
      figure(parts.speed, "tokens/s"),
      figure(parts.queue, "in the queue"),
      parts.busyBox,
      figure(parts.scored, "tokens scored")),
  );
  return parts;
}

function fill(card, teacher) {
  card.element.dataset.reachable = teacher.reachable;
  card.element.dataset.address = teacher.address;
  setText(card.name, teacher.model ?? teacher.address);
  const parameters = teacher.num_parameters ? `${short(teacher.num_parameters)} parameters` : "";
  setText(card.what, joined(teacher.device, teacher.dtype, parameters, teacher.model && teacher.address));
  const since = teacher.seen_at === null ? "" : ` Last heard of at ${clockTime(teacher.seen_at)}.`;
  setText(card.problem, teacher.reachable ? "" : `Not reachable: ${teacher.problem}.${since}`);
  show(card.problem, !teacher.reachable);
  const idle = !teacher.reachable;
  setText(card.speed, idle ? "\u2013" : short(teacher.tokens_per_second));
  const waiting = (teacher.queued_requests ?? 0) + (teacher.running_requests ?? 0);
  setText(card.queue, idle ? "\u2013" : `${waiting}`);
  show(card.busyBox, teacher.device_utilization !== null);
  setText(card.busy, idle ? "\u2013" : percent(teacher.device_utilization));
  setText(card.scored, short(teacher.scored_tokens));
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
