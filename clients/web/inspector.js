/** The tokens a reply is made of. Refuses to know conversations and where they are kept. */

import { element } from "./message.js";

export class Inspector {
  constructor() {
    this.element = element("section", { class: "inspector" });
  }
}
