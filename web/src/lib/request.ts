/** Ids of what a form starts. */
import { newRequestId } from "./api/client";

const DOUBLE_CLICK = 2000;

/**
 * The same id as long as the form says the same, so that a double click and a second try after a lost reply start one
 * job. Some seconds after it was taken, the same form is another request.
 */
export class RequestIds {
  #form = "";
  #id = newRequestId();

  of(form: unknown): string {
    const text = JSON.stringify(form);
    if (text !== this.#form) [this.#form, this.#id] = [text, newRequestId()];
    return this.#id;
  }

  taken(): void {
    const id = this.#id;
    setTimeout(() => {
      if (this.#id === id) this.#form = "";
    }, DOUBLE_CLICK);
  }
}
