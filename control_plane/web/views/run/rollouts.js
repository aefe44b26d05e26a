// @ts-check
// What the student wrote to learn from, newest step first, each token coloured by how far the
// teacher is from it.

import { get } from "../../api.js";
import { make } from "../../dom.js";
import { count, isActiveOrQueued, joined } from "../../format.js";
import { textOf } from "./samples.js";

/** @import { Rollout, Rollouts, ShownRun } from "../../types.d.ts" */

const EMPTY = "No rollouts yet. Some of what the student writes is kept, unless rollout.keep is false.";
const NOT_KEPT = "No rollouts: rollout.keep of the spec is false.";
// From each bound on, in nats, a token has a stronger colour. The same for all runs and steps.
const BOUNDS = [0.05, 0.2, 0.5, 1, 2, 5];
const NAMED = 3;

export class RolloutsRoom {
  constructor() {
    /** @type {Rollout[]} in the order of their steps */
    this.known = [];
    this.shown = "";
    this.runId = "";
    this.more = false;
    this.note = make("p", { className: "muted" });
    this.list = make("ol", { className: "samples rollouts" });
    this.earlier = make("button", { type: "button", className: "quiet", textContent: "Earlier steps" });
    this.earlier.addEventListener("click", () => void this.loadEarlier());
    this.element = make("div", {}, scale(), this.list, this.earlier, this.note);
    this.clear();
  }

  clear() {
    this.known = [];
    this.shown = "";
    this.runId = "";
    this.more = false;
    this.draw("");
  }

  /**
   * Changes nothing if there is nothing new, so that a selection survives.
   *
   * @param {ShownRun} run
   */
  async load(run) {
    /** @type {Rollouts} */
    const { rollouts, more } = await get(`/runs/${run.id}/rollouts`);
    const first = rollouts[0]?.step ?? 0;
    const isSame = this.runId === run.id;
    // Earlier ones stay only if nothing can lie between them and these.
    const meets = isSame && (!more || this.known.some(({ step }) => step >= first));
    const before = meets ? this.known.filter(({ step }) => step < first) : [];
    if (before.length === 0) this.more = more;
    this.runId = run.id;
    this.known = rollouts.length === 0 ? [] : [...before, ...rollouts];
    const isOff = run.settings["rollout.keep"] === false;
    this.draw(isOff ? NOT_KEPT : isActiveOrQueued(run) ? EMPTY : "No rollouts.");
  }

  async loadEarlier() {
    const id = this.runId, step = this.known[0]?.step;
    if (step === undefined) return;
    this.earlier.disabled = true;
    try {
      /** @type {Rollouts} */
      const { rollouts, more } = await get(`/runs/${id}/rollouts?before_step=${step}`);
      if (this.runId !== id || this.known[0]?.step !== step) return;
      this.known = [...rollouts, ...this.known];
      this.more = more && rollouts.length > 0;
      this.note.textContent = "";
      this.draw("");
    } catch (error) {
      this.note.textContent = error instanceof Error ? error.message : String(error);
    } finally {
      this.earlier.disabled = false;
    }
  }

  /** @param {string} empty said if there are none */
  draw(empty) {
    const text = JSON.stringify([this.runId, this.known, this.more, empty]);
    if (text === this.shown) return;
    this.shown = text;
    this.earlier.hidden = !this.more;
    const none = empty === "" ? [] : [make("li", { textContent: empty })];
    this.list.replaceChildren(...(this.known.length === 0 ? none : steps(this.known)));
  }
}

/**
 * Returns one list item per step.
 *
 * @param {Rollout[]} rollouts in the order of their steps
 */
function steps(rollouts) {
  /** @type {Map<number, Rollout[]>} */
  const byStep = new Map();
  for (const rollout of rollouts) {
    byStep.set(rollout.step, [...(byStep.get(rollout.step) ?? []), rollout]);
  }
  return [...byStep].reverse().map(([step, written]) => make(
    "li",
    {},
    make("h3", { textContent: `Step ${count(step)}` }),
    ...written.map(described),
  ));
}

/** @param {Rollout} rollout */
function described(rollout) {
  const { prompt, prompt_ids: ids } = rollout;
  return make(
    "dl",
    {},
    make("dt", { textContent: "Prompt" }),
    textOf(prompt ?? ids.map((id) => `#${id}`).join(" ")),
    make("dt", { textContent: "Student" }),
    judged(rollout),
    make("dt", { textContent: "Teacher" }),
    make("dd", { className: "judgement", textContent: judgement(rollout) }),
  );
}

/** @param {Rollout} rollout */
function judged({ tokens, ids, end, kl }) {
  const learnt = tokens ?? [...ids, ...(end === null ? [] : [end])].map((id) => `#${id} `);
  const place = make("dd", { className: "tokens" });
  learnt.forEach((token, at) => {
    const value = kl[at] ?? null, isEnd = end !== null && at === ids.length;
    const id = at < ids.length ? ids[at] : end;
    place.append(make("span", {
      dataset: { level: level(value), ...(isEnd ? { end: "" } : {}) },
      title: joined(quoted(token), `id ${id}`, nats(value)),
      textContent: visible(token),
    }));
  });
  return place;
}

/**
 * Returns what a person without the colours needs: the length, how it ended, the mean, the farthest.
 *
 * @param {Rollout} rollout
 */
function judgement({ row, sample, ids, end, tokens, kl, mean_kl: mean }) {
  const farthest = kl
    .flatMap((value, at) => (value === null ? [] : [{ value, at }]))
    .sort((one, other) => other.value - one.value)
    .slice(0, NAMED)
    .map(({ value, at }) => `${quoted(tokens?.[at] ?? `#${ids[at] ?? end}`)} ${value.toFixed(2)}`);
  return joined(
    `${mean === null ? "KL not finite" : `mean KL ${mean.toFixed(4)} nats`}`,
    farthest.length > 0 && `farthest at ${farthest.join(", ")}`,
    `${count(kl.length)} ${kl.length === 1 ? "token" : "tokens"}, ${end === null ? "cut" : "ended"}`,
    `row ${row}, sample ${sample}`,
  );
}

/** @param {number | null} value */
function level(value) {
  return value === null ? "none" : String(BOUNDS.filter((bound) => value >= bound).length);
}

/** @param {number | null} value */
const nats = (value) => (value === null ? "KL not finite" : `KL ${value.toFixed(4)} nats`);

/** @param {string} text */
const quoted = (text) => JSON.stringify(text);

/**
 * Line ends keep their place but can be seen; a token that only begins a character is a dot.
 *
 * @param {string} text
 */
const visible = (text) => (text === "" ? "\u00b7" : text.replaceAll("\n", "\u21b5\n"));

/** Says what the colours mean. */
function scale() {
  return make(
    "p",
    { className: "kl-scale" },
    "KL from the teacher in nats, at each token: ",
    ...["below", ...BOUNDS].map((bound, at) => make("span", {
      dataset: { level: String(at) },
      textContent: at === 0 ? `below ${BOUNDS[0]}` : `from ${bound}`,
    })),
    make("span", { dataset: { level: "none" }, textContent: "not finite" }),
  );
}
