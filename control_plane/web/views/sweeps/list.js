// @ts-check
// The list of sweeps: what each varies, and how far its runs are.

import { get } from "../../api.js";
import { make, setText, show } from "../../dom.js";
import { STATES, count, dateTime, joined } from "../../format.js";
import { pathOfSweep } from "../../state/router.js";

/** @import { RunState, SweepSummary, SweepsPage } from "../../types.d.ts" */

const LIMIT = 50;
const EVERY_MS = 5000;
const HEADS = ["Sweep", "Varies", "Runs", "Compared by", "Created"];

export class SweepList {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.shown = "";
    this.number = LIMIT;
    this.isOpen = false;
    this.problem = make("p", { className: "bad", hidden: true });
    this.problem.setAttribute("role", "alert");
    this.body = make("tbody");
    this.table = make(
      "div",
      { className: "card table", hidden: true },
      make(
        "table",
        { className: "sweeps" },
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
      hidden: true,
      textContent:
        "No sweeps yet. A sweep starts one run for each combination of settings, and says which is the best.",
    });
    this.more = make("button", {
      type: "button",
      className: "quiet",
      textContent: "Show more",
      hidden: true,
    });
    element.append(
      make("p", { className: "trail" }, make("a", { href: "#/", textContent: "All runs" })),
      make(
        "div",
        { className: "toolbar" },
        make("h1", { textContent: "Sweeps" }),
        make("a", { className: "quiet", href: "#/sweeps/new", textContent: "New sweep" }),
      ),
      this.problem,
      this.table,
      this.none,
      make("p", { className: "more" }, this.more),
    );
    this.more.addEventListener("click", () => {
      this.number += LIMIT;
      this.load();
    });
    setInterval(() => {
      if (this.isOpen && !document.hidden) this.load();
    }, EVERY_MS);
  }

  show() {
    this.isOpen = true;
    this.load();
  }

  hide() {
    this.isOpen = false;
  }

  async load() {
    try {
      /** @type {SweepSummary[]} */
      const sweeps = [];
      let cursor = "";
      for (;;) {
        /** @type {SweepsPage} */
        const page = await get(`/sweeps?limit=${LIMIT}${cursor && `&cursor=${cursor}`}`);
        sweeps.push(...page.sweeps);
        cursor = page.next_cursor ?? "";
        if (cursor === "" || sweeps.length >= this.number) break;
      }
      show(this.more, cursor !== "");
      this.say("");
      this.fill(sweeps);
    } catch (error) {
      this.say(error instanceof Error ? error.message : String(error));
    }
  }

  /** @param {SweepSummary[]} sweeps */
  fill(sweeps) {
    const text = JSON.stringify(sweeps);
    if (text === this.shown) return;
    this.shown = text;
    show(this.table, sweeps.length > 0);
    show(this.none, sweeps.length === 0);
    this.body.replaceChildren(
      ...sweeps.map((sweep) =>
        make(
          "tr",
          { dataset: { sweepId: sweep.id } },
          make(
            "th",
            { scope: "row" },
            make("a", { className: "name", href: pathOfSweep(sweep.id), textContent: sweep.name }),
            make("code", { className: "run-id", textContent: sweep.id }),
          ),
          make(
            "td",
            {},
            ...sweep.settings.map((path) => make("code", { className: "path", textContent: path })),
          ),
          make("td", { textContent: statesOf(sweep) }),
          make(
            "td",
            {},
            make("code", { textContent: sweep.metric }),
            sweep.goal === "min" ? ", the lowest" : ", the highest",
          ),
          make("td", { textContent: dateTime(sweep.created_at) }),
        ),
      ),
    );
  }

  /** @param {string} problem */
  say(problem) {
    setText(this.problem, problem);
    show(this.problem, problem !== "");
  }
}

/** @param {SweepSummary} sweep */
export function statesOf({ num_runs: number, states }) {
  const each = Object.entries(states)
    .filter(([, some]) => some > 0)
    .map(
      ([state, some]) =>
        `${count(some)} ${(STATES[/** @type {RunState} */ (state)] ?? state).toLowerCase()}`,
    );
  return joined(number === 1 ? "1 run" : `${count(number)} runs`, each.join(", "));
}
