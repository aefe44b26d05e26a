// @ts-check
export class NewRun {
  /** @param {HTMLElement} element */
  constructor(element) { this.element = element; }
  /** @param {string} view @param {string | null} id @param {URLSearchParams} params */
  async show(view, id, params) { void view; void id; void params; }
}
