/** Two replies to one prompt, side by side. */

import { element } from "./message.js";

export class Compare {
  constructor() {
    this.element = element("section", { class: "compare" });
  }
}
