/**
 * A message on the page, and text made into elements. What a model wrote is hostile: it becomes markup in
 * one function here, through a list of what is allowed, and characters that would hide something are shown.
 * Refuses to know the server and where messages are kept.
 */

import { Marked } from "./vendor/marked.js";
import "./vendor/purify.js";

const RENDER_MS = 100;
const COST_SHARE = 10;
/** A tick's work may take a tenth of the time between two. */
const SLICE_MS = 40;
const SLICE_BLOCKS = 16;
const MAX_LINE = 5000;
const MAX_BLOCK = 20000;
/** Beyond these, text is shown as it is: Markdown's rules look back, and that takes too long. */

/**
 * An element. Properties starting with `on` are listeners, the others attributes; null ones are left out.
 * @param {string} tag @param {Record<string, unknown>} props @param {...(Node | string)} children
 */
export function element(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** A button; `test` is the hook that tests find it by. */
export function button(label, onclick, props = {}) {
  return element("button", { type: "button", onclick, ...props }, label);
}

const MARKED = new Marked({
  gfm: true,
  breaks: true,
  // HTML is no markup here: a tag is shown as it was written.
  tokenizer: { html: () => undefined, tag: () => undefined },
  renderer: {
    image({ href, text }) {
      return `<a href="${escapeHtml(href)}">${escapeHtml(text || href)}</a>`; // said, never fetched
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 2); // below the page's own
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
  },
});
const ALLOWED = {
  ALLOWED_TAGS:
    "a p br hr strong em del code pre blockquote ul ol li h3 h4 h5 h6 table thead tbody tr th td".split(" "),
  ALLOWED_ATTR: ["href", "start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
globalThis.DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
  if (node.hasAttribute("href")) node.setAttribute("title", node.getAttribute("href"));
});

const escapeHtml = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

const MARKS = /(\p{M}{8})\p{M}+/gu;
/** No script stacks as many on one letter; fifty thousand of them keep a browser busy for seconds. */
const HIDING = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

/** Text with what nobody would see made visible: control characters, and those that turn its direction. */
export function visible(text) {
  return text.replace(/\r\n/g, "\n").replace(MARKS, "$1⟦…⟧").replace(HIDING, (c) => `⟦U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟧`);
}

/** What `work` gives; null if it nests deeper than Markdown's rules can follow. */
function unlessTooDeep(work) {
  try {
    return work();
  } catch (error) {
    if (error instanceof RangeError) return null;
    throw error;
  }
}

/** Markdown's blocks; null if they nest too deep. */
const lex = (text) => unlessTooDeep(() => MARKED.lexer(text));

/** Text as it is. */
const plain = (...children) => element("p", { class: "plain" }, ...children);

/** Markdown's tokens as elements that are safe. @returns {Node} */
function toFragment(tokens) {
  const html = unlessTooDeep(() => MARKED.parser(tokens));
  if (html === null) return plain(tokens.map(({ raw }) => raw).join(""));
  const fragment = globalThis.DOMPurify.sanitize(html, ALLOWED);
  for (const table of fragment.querySelectorAll("table")) {
    const box = element("div", { class: "wide-box", tabindex: "0", role: "region", "aria-label": "Table" });
    table.replaceWith(box);
    box.append(table);
  }
  for (const pre of fragment.querySelectorAll("pre")) pre.tabIndex = 0; // its scrolling is for keys too
  return fragment;
}

function isPlain(text) {
  let line = 0;
  for (let start = 0; start <= text.length; start = line + 1) {
    line = text.indexOf("\n", start);
    if (line < 0) line = text.length;
    if (line - start > MAX_LINE) return true;
  }
  return false;
}

/** Text that grows. Blocks that are closed stay as they are; only the last, open one is made anew. */
export class Prose {
  #root;
  #tail = element("div", { class: "open" });
  #text = "";
  #offset = 0;
  #timer = 0;
  #cost = 0;
  #plain = null;

  /** @param {HTMLElement} root */
  constructor(root) {
    this.#root = root;
    root.replaceChildren(this.#tail);
  }

  /** Show all of this text, soon. It begins with what was shown before. */
  grow(text) {
    this.#text = text;
    this.#timer ||= setTimeout(() => this.#render(), Math.max(RENDER_MS, COST_SHARE * this.#cost));
  }

  /** Show this text, for good. */
  finish(text) {
    clearTimeout(this.#timer);
    const shown = visible(text);
    const isOther = !text.startsWith(this.#text);
    if (isOther || this.#plain || shown.includes("]:")) this.#root.replaceChildren(this.#tail); // a link may be defined below
    if (this.#root.firstChild === this.#tail) this.#offset = 0;
    const blocks = isPlain(shown) ? null : lex(shown.slice(this.#offset));
    if (blocks) this.#fill(blocks);
    else this.#root.replaceChildren(plain(shown));
  }

  /** The blocks that are left, some at a time, so that a long text holds nobody up. */
  #fill(tokens) {
    const start = performance.now();
    this.#tail.replaceChildren();
    while (tokens.length && performance.now() - start < SLICE_MS) {
      const slice = tokens.splice(0, SLICE_BLOCKS);
      this.#tail.before(toFragment(slice));
      this.#offset = slice.reduce((offset, { raw }) => offset + raw.length, this.#offset);
    }
    if (tokens.length) this.#timer = setTimeout(() => this.#fill(tokens));
  }

  #render() {
    const start = performance.now();
    this.#timer = 0;
    const shown = visible(this.#text);
    if (this.#plain || shown.length - this.#offset > MAX_BLOCK || isPlain(shown.slice(this.#offset))) this.#showPlain(shown);
    else this.#showBlocks(shown);
    this.#cost = performance.now() - start;
  }

  #showPlain(shown) {
    if (!this.#plain) {
      this.#plain = { node: document.createTextNode(""), from: this.#offset };
      this.#tail.replaceChildren(plain(this.#plain.node));
    }
    this.#plain.node.appendData(shown.slice(this.#plain.from + this.#plain.node.length));
  }

  #showBlocks(shown) {
    const tokens = lex(shown.slice(this.#offset));
    if (!tokens) return this.#showPlain(shown);
    const open = tokens.findLastIndex((token) => token.type !== "space");
    for (const token of tokens.slice(0, Math.max(0, open))) {
      if (!shown.startsWith(token.raw, this.#offset)) return;
      this.#tail.before(toFragment([token]));
      this.#offset += token.raw.length;
    }
    if (open >= 0) this.#tail.replaceChildren(toFragment([tokens[open]]));
  }
}

/** A message with what can be done about it. */
export class MessageView {
  #handlers;
  #meta = element("footer");
  #body = element("div", { class: "text", "data-test": "message-text" });
  #prose = null;

  /**
   * @param {import("./store.js").Message} message
   * @param {{place: number, count: number}} siblings
   * @param {Record<string, Function>} handlers regenerate, edit, sibling, retry, inspect
   */
  constructor(message, siblings, handlers) {
    this.message = message;
    this.siblings = siblings;
    this.#handlers = handlers;
    this.host = element("div"); // what is shown below it, such as its tokens
    this.element = element("article", { class: `message ${message.role}`, "data-test": "message", "data-role": message.role }, this.#body, this.#meta, this.host);
    this.update();
  }

  /** The reply has grown. */
  grow() {
    this.#prose ??= new Prose(this.#body);
    this.#prose.grow(this.message.text);
  }

  /** Show the message as it is now. */
  update() {
    const { role, state, text, model } = this.message;
    this.element.dataset.state = state;
    this.element.setAttribute("aria-label", role === "user" ? "You" : (model ?? "Reply"));
    this.element.setAttribute("aria-busy", String(state === "streaming"));
    if (role === "user") this.#body.textContent = visible(text);
    else if (state === "streaming") this.grow();
    else (this.#prose ?? new Prose(this.#body)).finish(text);
    this.#meta.replaceChildren(...this.#metaParts());
  }

  #metaParts() {
    const { role, state } = this.message;
    const parts = [];
    if (this.message.error) parts.push(this.#errorPart());
    if (this.siblings.count > 1) parts.push(this.#siblingPart());
    if (state === "streaming") return parts;
    if (role === "user") return [...parts, button("Edit", () => this.#openEditor(), { "data-test": "edit" })];
    parts.push(button("Regenerate", () => this.#handlers.regenerate(this), { "data-test": "regenerate" }));
    if (this.message.ids?.length) {
      const props = { "data-test": "inspect", "aria-expanded": "false" };
      parts.push(button("Tokens", (event) => this.#handlers.inspect(this, event.target), props));
    }
    if (this.message.text) parts.push(button("Copy", (event) => copy(this.message.text, event.target)));
    return [...parts, element("span", { class: "speed", "data-test": "speed" }, speedOf(this.message))];
  }

  #errorPart() {
    const { message, retryAfter } = this.message.error;
    const wait = retryAfter ? ` (again in ${retryAfter} s)` : "";
    const retry = button("Retry", () => this.#handlers.retry(this), { "data-test": "retry" });
    return element("p", { class: "error", role: "alert" }, visible(message) + wait, " ", retry);
  }

  #siblingPart() {
    const { place, count } = this.siblings;
    const step = (by) => () => this.#handlers.sibling(this, by);
    return element(
      "span",
      { class: "siblings", role: "group", "aria-label": "Alternatives" },
      button("‹", step(-1), { "data-test": "sibling-prev", "aria-label": "Previous alternative", disabled: place === 1 }),
      element("span", { "data-test": "sibling-count" }, `${place}/${count}`),
      button("›", step(1), { "data-test": "sibling-next", "aria-label": "Next alternative", disabled: place === count }),
    );
  }

  #openEditor() {
    const box = element("textarea", { "data-test": "edit-box", "aria-label": "Edit the message", rows: "3" });
    box.value = this.message.text;
    const save = () => this.#handlers.edit(this, box.value);
    const cancel = () => this.update();
    box.addEventListener("keydown", (event) => {
      if (event.key === "Escape") cancel();
      else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) save();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.#body.replaceChildren(box);
    this.#meta.replaceChildren(button("Send", save, { "data-test": "edit-save" }), button("Cancel", cancel));
    box.focus();
  }
}

async function copy(text, pressed) {
  const copied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  pressed.textContent = copied ? "Copied" : "Not allowed";
  setTimeout(() => (pressed.textContent = "Copy"), 1500);
}

/** Tokens, tokens a second, time to the first one, and what else should be known of a reply. */
function speedOf({ ids, given = 0, timings, finish, state, dropped }) {
  const parts = [];
  if (ids?.length) parts.push(`${ids.length - given} tokens`);
  if (timings?.decode_tok_s) parts.push(`${Math.round(timings.decode_tok_s)} tokens/s`);
  if (timings) parts.push(`first after ${Math.round(timings.ttft_ms)} ms`);
  if (state === "stopped") parts.push("stopped");
  if (finish === "length") parts.push("cut at its longest");
  if (dropped) parts.push(`${dropped} oldest messages left out`);
  return parts.join(" · ");
}
