// @ts-check
// The runs of one teacher and what each has had of it. The user can fold the table away.

import { make, placeRows, setText, show } from "../../dom.js";
import { percent, short, size, wait } from "../../format.js";

/** @import { Account } from "../../types.d.ts" */

/**
 * @typedef {object} Row
 * @property {HTMLElement} element
 * @property {HTMLAnchorElement} name
 * @property {HTMLElement} id
 * @property {HTMLElement} bar
 * @property {HTMLElement} share
 * @property {HTMLElement[]} cells one per column
 */

const FOLDED_KEY = "lectern-accounts-folded";
const SHOWN_AT_FIRST = 4;

/** @type {{label: string, title: string, text: (account: Account) => string}[]} */
const COLUMNS = [
  {
    label: "Tokens",
    title: "Tokens whose hidden states the teacher computed for this run; those that several runs "
      + "asked for are split among them. Without any, all came from the cache: the compute is then "
      + "the output head, which is applied to cached rows too.",
    text: (account) => account.tokens === 0 && account.cache_hits > 0
      ? "0, all cached"
      : short(account.tokens),
  },
  {
    label: "Sent",
    title: "Size of the answers to this run, without protocol overhead",
    text: (account) => size(account.sent_bytes),
  },
  {
    label: "Cached",
    title: "Share of its sequences that needed no forward pass of their own",
    text: (account) => percent(account.hit_share),
  },
  {
    label: "Queue",
    title: "Mean time of its requests in the queue",
    text: (account) => wait(account.mean_queue_seconds),
  },
  {
    label: "Weight",
    title: "Its share of the teacher, relative to the other runs that ask at the same time",
    text: (account) => account.weight === null ? "\u2013" : String(account.weight),
  },
];
const HEADS = [
  { label: "Run", title: "" },
  { label: "Compute", title: "Share of the teacher's compute time since it started" },
  ...COLUMNS,
];

export class Accounts {
  constructor() {
    /** @type {Map<string, Row>} */
    this.rows = new Map();
    this.showsAll = false;
    /** @type {Account[]} */
    this.accounts = [];
    this.title = make("span");
    this.body = make("tbody");
    this.more = make("button", { type: "button", className: "quiet all-accounts" });
    this.more.addEventListener("click", () => {
      this.showsAll = !this.showsAll;
      this.render();
    });
    const heads = HEADS.map(({ label, title }) =>
      make("th", { scope: "col", textContent: label, title }));
    this.element = make(
      "details",
      { className: "accounts", open: localStorage.getItem(FOLDED_KEY) === null },
      make("summary", {}, this.title),
      make("table", {}, make("thead", {}, make("tr", {}, ...heads)), this.body),
      this.more,
    );
    this.element.addEventListener("toggle", () => {
      if (this.element.open) localStorage.removeItem(FOLDED_KEY);
      else localStorage.setItem(FOLDED_KEY, "yes");
    });
  }

  /**
   * @param {Account[]} accounts most compute first
   * @param {number | null} total how many runs the teacher knows
   */
  update(accounts, total) {
    this.accounts = accounts;
    show(this.element, accounts.length > 0);
    setText(this.title, total === 1 ? "1 run since it started" : `${total} runs since it started`);
    this.render();
  }

  render() {
    const { accounts } = this;
    const shown = this.showsAll ? accounts : accounts.slice(0, SHOWN_AT_FIRST);
    placeRows(this.body, this.rows, shown, (account) => account.run_id, newRow);
    const names = accounts.map((account) => account.name);
    for (const account of shown) {
      const isUnique = names.indexOf(account.name) === names.lastIndexOf(account.name);
      const row = this.rows.get(account.run_id);
      if (row) fill(row, account, account.name !== null && isUnique);
    }
    setText(this.more, this.showsAll ? "Show fewer" : `Show all ${accounts.length}`);
    show(this.more, accounts.length > SHOWN_AT_FIRST);
  }
}

/**
 * @param {Account} account
 * @returns {Row}
 */
function newRow(account) {
  const name = make("a", { className: "account-name" });
  const id = make("code", { textContent: account.run_id });
  const bar = make("i");
  const share = make("span");
  const cells = COLUMNS.map(({ label, title }) => make("td", { dataset: { label }, title }));
  const element = make(
    "tr",
    {},
    make("th", { scope: "row" }, name, id),
    make("td", { className: "share" },
      make("div", {}, make("span", { className: "bar" }, bar), share)),
    ...cells,
  );
  return { element, name, id, bar, share, cells };
}

/**
 * Fills a row. A run of another control plane has no name, and no page here.
 *
 * @param {Row} row
 * @param {Account} account
 * @param {boolean} nameIsEnough whether the name tells the run from the others
 */
function fill(row, account, nameIsEnough) {
  setText(row.name, account.name ?? "");
  show(row.name, account.name !== null);
  show(row.id, !nameIsEnough);
  if (account.name !== null) row.name.href = `#/runs/${encodeURIComponent(account.run_id)}`;
  row.element.title = account.name === null
    ? "Not a run of this control plane"
    : account.run_id;
  row.bar.style.width = `${100 * (account.compute_share ?? 0)}%`;
  setText(row.share, percent(account.compute_share));
  COLUMNS.forEach(({ text }, place) => setText(row.cells[place], text(account)));
}
