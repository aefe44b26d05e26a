// The runs of one teacher: what each has had of it. Folded away and unfolded as the user likes.

import { make, setText, show } from "../dom.js";
import { percent, short, size, wait } from "../format.js";

const FOLDED_KEY = "lectern-accounts-folded";
const SHOWN_AT_FIRST = 4;

// [label, text of an account, what it means]
const COLUMNS = [
  ["Tokens", (account) => short(account.tokens), "Computed for it; its part of those that several runs wanted"],
  ["Sent", (account) => size(account.sent_bytes), "Answers, without what carries them"],
  ["Cached", (account) => percent(account.hit_share), "Its sequences that needed no forward of their own"],
  ["Waits", (account) => wait(account.mean_queue_seconds), "In the queue, the mean of its requests"],
  ["Weight", (account) => account.weight === null ? "\u2013" : String(account.weight),
    "Its share of the teacher while others ask too, relative to theirs"],
];

export class Accounts {
  constructor() {
    this.rows = new Map(); // run id -> parts
    this.isWhole = false;
    this.accounts = [];
    this.title = make("span");
    this.body = make("tbody");
    this.all = make("button", { type: "button", className: "quiet all-accounts" });
    this.all.addEventListener("click", () => {
      this.isWhole = !this.isWhole;
      this.render(this.accounts, this.total);
    });
    const heads = [["Run"], ["Share of its work", null, "Of the time that the teacher has computed"], ...COLUMNS];
    this.element = make("details", { className: "accounts", open: localStorage.getItem(FOLDED_KEY) === null },
      make("summary", {}, this.title),
      make("table", {},
        make("thead", {}, make("tr", {}, ...heads.map(([label, , title]) =>
          make("th", { scope: "col", textContent: label, title: title ?? "" })))),
        this.body),
      this.all);
    this.element.addEventListener("toggle", () => {
      if (this.element.open) localStorage.removeItem(FOLDED_KEY);
      else localStorage.setItem(FOLDED_KEY, "yes");
    });
  }

  // accounts: the most compute first. total: how many runs the teacher knows.
  render(accounts, total) {
    this.accounts = accounts;
    this.total = total;
    show(this.element, accounts.length > 0);
    const shown = this.isWhole ? accounts : accounts.slice(0, SHOWN_AT_FIRST);
    const names = accounts.map((account) => account.name);
    const isOnly = (name) => name !== null && names.indexOf(name) === names.lastIndexOf(name);
    shown.forEach((account, place) => {
      if (!this.rows.has(account.run_id)) this.rows.set(account.run_id, newRow(account));
      const row = this.rows.get(account.run_id);
      const present = this.body.children[place];
      if (present !== row.element) this.body.insertBefore(row.element, present ?? null);
      fill(row, account, isOnly(account.name));
    });
    const ids = new Set(shown.map((account) => account.run_id));
    for (const [id, row] of this.rows) {
      if (!ids.has(id)) {
        row.element.remove();
        this.rows.delete(id);
      }
    }
    setText(this.title, total === 1 ? "1 run since its start" : `${total} runs since its start`);
    setText(this.all, this.isWhole ? "Fewer" : `All ${accounts.length}`);
    show(this.all, accounts.length > SHOWN_AT_FIRST);
  }
}

function newRow(account) {
  const row = {
    name: make("a", { className: "account-name" }),
    id: make("code"),
    bar: make("i"),
    share: make("span"),
    cells: COLUMNS.map(([label, , title]) => make("td", { dataset: { label }, title })),
  };
  setText(row.id, account.run_id);
  row.element = make("tr", {},
    make("th", { scope: "row" }, row.name, row.id),
    make("td", { className: "share" }, make("div", {}, make("span", { className: "bar" }, row.bar), row.share)),
    ...row.cells);
  return row;
}

// A run of another control plane has an id alone, and no page here.
function fill(row, account, nameIsEnough) {
  setText(row.name, account.name ?? "");
  show(row.name, account.name !== null);
  show(row.id, !nameIsEnough);
  if (account.name !== null) row.name.href = `#/runs/${encodeURIComponent(account.run_id)}`;
  row.element.title = account.name === null ? "No run of this control plane" : account.run_id;
  row.bar.style.width = `${100 * (account.compute_share ?? 0)}%`;
  setText(row.share, percent(account.compute_share));
  COLUMNS.forEach(([, text], place) => setText(row.cells[place], text(account)));
}
