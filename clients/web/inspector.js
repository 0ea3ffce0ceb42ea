/**
 * The tokens a reply is made of: how probable each was, what else there was, when it came. Refuses to know
 * conversations and where they are kept.
 *
 * Probabilities are asked for when somebody looks, of the whole reply at once, and come with token ids: so a
 * chat does not pay for them, and an alternative can be taken by its id.
 */

import { button, element, visible } from "./message.js";

export const TOP = 10;
const SHOWN = 8;
/** Alternatives asked for at every token, and listed. */
const PAGE = 200;
const PROMPT_SHOWN = 200;
const MAX_CONTROL = 32;
const HIDE_MS = 200;
const SVG = "http://www.w3.org/2000/svg";

/**
 * @typedef {{id: number, text: string, logprob: number, rank: number}} Candidate
 * @typedef {Candidate & {top: Candidate[], ms?: number, batch?: number, isGiven?: boolean}} Token
 */

/** Tokens of what the server scored. @param {number[]} ids @param {object[]} entries @returns {Token[]} */
export function toTokens(ids, entries) {
  return ids.map((id, i) => {
    const all = Object.entries(entries[i]).map(([key, { decoded_token: text, logprob, rank }]) => ({ id: Number(key), text, logprob, rank }));
    const top = all.sort((a, b) => a.rank - b.rank).slice(0, TOP);
    return { ...all.find((one) => one.id === id), top };
  });
}

/** Bits of surprise to expect, at least: what is not among the top counts as one thing. @param {Candidate[]} top */
export function entropyOf(top) {
  const known = top.map(({ logprob }) => Math.exp(logprob));
  const rest = Math.max(0, 1 - known.reduce((sum, p) => sum + p, 0));
  return [...known, rest].reduce((bits, p) => (p > 0 ? bits - p * Math.log2(p) : bits), 0);
}

/** A token's text with what cannot be seen in it made visible. */
export function shownText(text) {
  if (!text) return "∅";
  return visible(text).replace(/\n/g, "↵\n").replace(/\t/g, "⇥\t");
}

/** Values as a strip of bars; pressing one tells which. @param {number[]} values */
export function strip(values, label, onpick) {
  const highest = Math.max(...values, 1e-9);
  const bars = values.map((value, i) => `M${i} 1V${(1 - value / highest).toFixed(3)}h1V1z`);
  const svg = document.createElementNS(SVG, "svg");
  const attributes = { viewBox: `0 0 ${values.length} 1`, preserveAspectRatio: "none", role: "img", "aria-label": label };
  for (const [name, value] of Object.entries(attributes)) svg.setAttribute(name, value);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", bars.join(""));
  svg.append(path);
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    const at = Math.floor(((event.clientX - box.left) / box.width) * values.length);
    onpick?.(Math.min(values.length - 1, Math.max(0, at)));
  });
  return svg;
}

export const percent = (logprob) => {
  const p = 100 * Math.exp(logprob);
  return p > 0 && p < 0.01 ? "< 0.01 %" : `${p.toFixed(p < 10 ? 2 : 1)} %`;
};

/** A reply taken apart. */
export class Inspector {
  #api;
  #message;
  #branch;
  #prompt = [];
  #tokens = [];
  #from = 0;
  #current = 0;
  #hiding = 0;
  #box = element("div", { class: "tokens", role: "listbox", "aria-label": "Tokens of the reply" });
  #card = element("div", { class: "card", "data-test": "token-card", role: "group", "aria-label": "Token", hidden: true });
  #pager = element("div", { class: "pager" });

  /**
   * @param {import("./api.js").Api} api
   * @param {import("./store.js").Message} message
   * @param {object[]} messages what it is the reply to
   * @param {(prompt: number[], index: number, id: number) => void} branch take another token, and go on
   */
  constructor(api, message, messages, branch) {
    this.#api = api;
    this.#message = message;
    this.#branch = branch;
    this.element = element("section", { class: "inspector", "aria-label": "Tokens" }, element("p", { class: "hint" }, "Asking for probabilities…"));
    this.#load(messages).catch((error) => this.element.replaceChildren(element("p", { class: "error", role: "alert" }, error.message)));
    this.#listen();
    new ResizeObserver(() => this.#card.hidden || this.#placeCard()).observe(this.element);
  }

  async #load(messages) {
    const { model, ids, given = 0, timings } = this.#message;
    const prompt = await this.#api.tokenize(model, { messages });
    const entries = await this.#api.scores(model, [...prompt.tokens, ...ids], TOP);
    this.#prompt = prompt.tokens;
    this.#tokens = toTokens(ids, entries.slice(prompt.tokens.length));
    for (const [i, token] of this.#tokens.entries()) {
      Object.assign(token, { isGiven: i < given }, timings?.per_token?.[i - given]);
    }
    const control = await this.#controlIds(prompt);
    this.element.replaceChildren(promptPart(prompt, control), this.#summary(), this.#entropyStrip(), this.#pager, this.#box, this.#card);
    this.#showPage(0);
  }

  /** Which of the prompt's tokens are control tokens: those that look like one, and are no text. */
  async #controlIds({ tokens, token_strs: texts }) {
    const likely = [...new Set(tokens.filter((_, i) => /^[<[].+[>\]]$/.test(texts[i])))].slice(0, MAX_CONTROL);
    const spelled = await Promise.all(likely.map((id) => this.#api.detokenize(this.#message.model, [id])));
    return new Set(likely.filter((_, i) => spelled[i] === ""));
  }

  #summary() {
    const nll = -this.#tokens.reduce((sum, { logprob }) => sum + logprob, 0) / this.#tokens.length;
    const first = this.#tokens.filter(({ rank }) => rank === 1).length;
    return element("p", { class: "hint" }, `${this.#tokens.length} tokens · perplexity ${Math.exp(nll).toFixed(2)} · ${first} were the most probable one · before temperature and penalties`);
  }

  #entropyStrip() {
    const bits = this.#tokens.map(({ top }) => entropyOf(top));
    const highest = Math.max(...bits).toFixed(1);
    const label = `Entropy at each token, up to ${highest} bits: of the top ${TOP}, so at least that much`;
    const svg = strip(bits, label, (index) => this.#focus(index));
    return element("figure", { class: "strip", "data-test": "entropy" }, svg, element("figcaption", {}, label));
  }

  #showPage(from) {
    this.#from = Math.max(0, Math.min(from, Math.floor((this.#tokens.length - 1) / PAGE) * PAGE));
    const shown = this.#tokens.slice(this.#from, this.#from + PAGE);
    this.#box.replaceChildren(...shown.map((token, i) => tokenBox(token, this.#from + i)));
    this.#current = Math.min(Math.max(this.#current, this.#from), this.#from + shown.length - 1);
    this.#boxOf(this.#current)?.setAttribute("tabindex", "0");
    this.#hide();
    const many = this.#tokens.length > PAGE;
    const step = (by) => () => this.#showPage(this.#from + by * PAGE);
    const last = this.#from + shown.length;
    const parts = [
      button("‹", step(-1), { "aria-label": "Earlier tokens", "data-test": "tokens-prev", disabled: this.#from === 0 }),
      `${this.#from + 1}–${last} of ${this.#tokens.length}`,
      button("›", step(1), { "aria-label": "Later tokens", "data-test": "tokens-next", disabled: last === this.#tokens.length }),
    ];
    this.#pager.replaceChildren(...(many ? parts : []));
  }

  #boxOf(index) {
    return this.#box.children[index - this.#from];
  }

  #focus(index) {
    if (index < 0 || index >= this.#tokens.length) return;
    if (index < this.#from || index >= this.#from + PAGE) {
      this.#current = index;
      this.#showPage(Math.floor(index / PAGE) * PAGE);
    }
    this.#boxOf(index).focus();
  }

  #listen() {
    const indexOf = (event) => Number(event.target.closest?.(".token")?.dataset.index ?? NaN);
    const show = (event) => Number.isNaN(indexOf(event)) || this.#show(indexOf(event));
    this.#box.addEventListener("mouseover", show);
    this.#box.addEventListener("focusin", show);
    this.#box.addEventListener("keydown", (event) => this.#pressed(event));
    this.#card.addEventListener("keydown", (event) => this.#pressedInCard(event));
    for (const part of [this.#box, this.#card]) {
      part.addEventListener("mouseleave", () => this.#hideSoon());
      part.addEventListener("focusout", () => this.#hideSoon());
      part.addEventListener("mouseenter", () => clearTimeout(this.#hiding));
    }
  }

  #pressed(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -PAGE, PageDown: PAGE, Home: -this.#current, End: this.#tokens.length - 1 - this.#current }[event.key];
    if (by !== undefined) this.#focus(Math.min(this.#tokens.length - 1, Math.max(0, this.#current + by)));
    else if (event.key === "ArrowDown" || event.key === "Enter") this.#card.querySelector("button:not(:disabled)")?.focus();
    else if (event.key === "Escape" && !this.#card.hidden) this.#hide();
    else return;
    event.preventDefault();
  }

  #pressedInCard(event) {
    const all = [...this.#card.querySelectorAll("button:not(:disabled)")];
    const at = all.indexOf(event.target);
    if (event.key === "ArrowDown") all[Math.min(all.length - 1, at + 1)].focus();
    else if (event.key === "ArrowUp" && at > 0) all[at - 1].focus();
    else if (event.key === "ArrowUp" || event.key === "Escape") this.#boxOf(this.#current).focus();
    else return;
    event.preventDefault();
  }

  #show(index) {
    clearTimeout(this.#hiding);
    const before = this.#boxOf(this.#current);
    before?.setAttribute("tabindex", "-1");
    before?.setAttribute("aria-selected", "false");
    this.#current = index;
    const box = this.#boxOf(index);
    box.setAttribute("tabindex", "0");
    box.setAttribute("aria-selected", "true");
    this.#card.replaceChildren(...this.#cardParts(this.#tokens[index], index));
    this.#card.hidden = false;
    this.#placeCard();
  }

  /** The card below its token, or above it if there is no room below and some above. */
  #placeCard() {
    const [line] = this.#boxOf(this.#current).getClientRects();
    if (!line) return; // the reply is no longer shown
    const frame = this.element.getBoundingClientRect();
    const room = this.element.closest("[role=log]")?.getBoundingClientRect() ?? frame;
    const { offsetWidth: width, offsetHeight: height } = this.#card;
    const isAbove = line.bottom + height > room.bottom && line.top - height > room.top;
    this.#card.style.left = `${Math.max(0, Math.min(line.left - frame.left, frame.width - width))}px`;
    this.#card.style.top = `${(isAbove ? line.top - height : line.bottom) - frame.top}px`;
  }

  #cardParts(token, index) {
    const facts = [`${percent(token.logprob)} · logprob ${token.logprob.toFixed(3).replace(/^-0\.000$/, "0.000")} · rank ${token.rank}`];
    const isFirst = index === (this.#message.given ?? 0);
    if (token.isGiven) facts.push("given, not drawn");
    else if (isFirst) facts.push(`${this.#message.timings?.ttft_ms.toFixed(2) ?? "?"} ms to this first one · batch of ${token.batch}`);
    else if (token.batch) facts.push(`${token.ms ? `${token.ms.toFixed(2)} ms after the last` : "in one step with the last"} · batch of ${token.batch}`);
    return [
      element("p", { class: "title" }, element("code", {}, shownText(token.text)), element("small", {}, ` id ${token.id} · token ${index + 1}`)),
      ...facts.map((fact) => element("p", { class: "fact" }, fact)),
      element("ol", {}, ...token.top.slice(0, SHOWN).map((one) => element("li", {}, this.#alternative(one, token, index)))),
      element("p", { class: "hint" }, "Choose one to branch the reply there."),
    ];
  }

  #alternative(candidate, token, index) {
    const bar = element("span", { class: "bar" });
    bar.style.setProperty("--p", Math.exp(candidate.logprob).toFixed(4));
    const made = button("", () => this.#branch(this.#prompt, index, candidate.id), {
      "data-test": "alternative",
      "data-id": candidate.id,
      disabled: candidate.id === token.id,
    });
    made.append(element("code", {}, shownText(candidate.text)), bar, element("span", { class: "number" }, percent(candidate.logprob)));
    return made;
  }

  #hideSoon() {
    clearTimeout(this.#hiding);
    this.#hiding = setTimeout(() => {
      const isUsed = [this.#box, this.#card].some((part) => part.matches(":hover, :focus-within"));
      if (!isUsed) this.#hide();
    }, HIDE_MS);
  }

  #hide() {
    this.#card.hidden = true;
  }
}

function tokenBox(token, index) {
  const box = element("span", {
    class: token.isGiven ? "token given" : "token",
    "data-test": "token",
    "data-index": index,
    role: "option",
    tabindex: "-1",
    "aria-selected": "false",
    "aria-label": `${shownText(token.text)}, ${percent(token.logprob)}`,
  }, shownText(token.text));
  box.style.setProperty("--off", (1 - Math.exp(token.logprob)).toFixed(3));
  return box;
}

/** The prompt as the model read it: the beginning and the end of a long one. */
function promptPart({ tokens, token_strs: texts }, control) {
  const one = (id, i) => element("span", { class: control.has(id) ? "token control" : "token", title: `id ${id}` }, shownText(texts[i]));
  const all = tokens.map((id, i) => [id, i]);
  const cut = all.length > 2 * PROMPT_SHOWN;
  const head = (cut ? all.slice(0, PROMPT_SHOWN) : all).map(([id, i]) => one(id, i));
  const tail = (cut ? all.slice(-PROMPT_SHOWN) : []).map(([id, i]) => one(id, i));
  const gap = cut ? [element("p", { class: "hint" }, `… ${all.length - 2 * PROMPT_SHOWN} more …`)] : [];
  const summary = element("summary", {}, `The prompt, ${all.length} tokens`);
  return element("details", { "data-test": "prompt-tokens" }, summary, element("div", { class: "tokens" }, ...head, ...gap, ...tail));
}
