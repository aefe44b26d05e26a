// @ts-check
export class Comparison {
  /** @param {HTMLElement} element @param {any} store */
  constructor(element, store) { this.element = element; this.store = store; }
  /** @param {URLSearchParams} params */
  async show(params) { void params; }
  hide() {}
  /** @param {any} run @param {string} id */
  take(run, id) { void run; void id; }
}
