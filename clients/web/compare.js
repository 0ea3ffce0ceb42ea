/**
 * Two replies to one prompt, side by side: another model, adapter or setting, and the same seed. Refuses to
 * know conversations.
 *
 * KL is that of A's probabilities from B's, at every token of A's reply and read by both after the same
 * beginning. Both tell only their most probable tokens; those they share are compared one by one and all
 * others as one thing, which makes the divergence smaller, never larger.
 */

import { percent, strip, TOP, toTokens } from "./inspector.js";
import { button, element, visible } from "./message.js";

const SIDES = ["A", "B"];
const FIELDS = [
  ["temperature", "Temperature", { min: "0", max: "2", step: "any" }],
  ["top_p", "Top-p", { min: "0.000001", max: "1", step: "any" }],
  ["top_k", "Top-k", { min: "-1", step: "1" }],
];
const MAX_SEED = 2 ** 31;

/**
 * A lower bound of the divergence of p from q, in nats, from what is known of both.
 * @param {import("./inspector.js").Candidate[]} p @param {import("./inspector.js").Candidate[]} q
 */
export function divergence(p, q) {
  const others = new Map(q.map(({ id, logprob }) => [id, logprob]));
  const shared = p.filter(({ id }) => others.has(id)).map(({ id, logprob }) => [logprob, others.get(id)]);
  const known = shared.reduce((sum, [a, b]) => sum + Math.exp(a) * (a - b), 0);
  const rest = (side) => Math.max(0, 1 - shared.reduce((sum, pair) => sum + Math.exp(pair[side]), 0));
  const [a, b] = [rest(0), rest(1)];
  return Math.max(0, known + (a > 0 && b > 0 ? a * Math.log(a / b) : 0));
}

/** Where two lists differ first; their length, if one begins with the other. */
export function firstDifference(a, b) {
  let i = 0;
  while (i < a.length && i < b.length && a[i] === b[i]) i++;
  return i;
}

/** One side: its settings and its reply. */
class Side {
  constructor(name, models, chosen) {
    this.name = name;
    const id = (field) => `compare-${name}-${field}`.toLowerCase();
    this.model = element("select", { id: id("model"), "data-test": id("model") }, ...models.map((one) => element("option", { value: one.id, selected: one.id === chosen }, one.id)));
    const rows = FIELDS.map(([field, label, props]) => {
      const input = element("input", { id: id(field), "data-test": id(field), type: "number", placeholder: "–", title: "empty: the checkpoint’s own", ...props });
      return [field, label, input];
    });
    this.inputs = new Map(rows.map(([field, , input]) => [field, input]));
    this.text = element("div", { class: "reply", "data-test": id("text"), tabindex: "0", role: "region", "aria-label": `Reply ${name}` });
    this.speed = element("p", { class: "hint" });
    this.element = element(
      "section",
      { class: "side", "aria-label": `Side ${name}` },
      element("div", { class: "row" }, element("strong", {}, name), element("label", { class: "unseen", for: id("model") }, `Model ${name}`), this.model),
      element("div", { class: "fields" }, ...rows.flatMap(([field, label, input]) => [element("label", { for: id(field) }, label), input])),
      this.text,
      this.speed,
    );
  }

  get sampling() {
    const set = [...this.inputs].filter(([, input]) => input.value !== "" && input.checkValidity());
    return Object.fromEntries(set.map(([field, input]) => [field, input.valueAsNumber]));
  }

  /** @param {AbortSignal} signal */
  async run(api, messages, common, signal) {
    this.reply = { text: "", ids: [], model: this.model.value };
    this.text.replaceChildren();
    const shown = this.text.appendChild(document.createTextNode(""));
    const request = { ...common, ...this.sampling, model: this.reply.model, messages };
    for await (const event of api.chat(request, signal)) {
      if (event.kind !== "text") Object.assign(this.reply, event);
      else {
        this.reply.text += event.text;
        this.reply.ids.push(...event.ids);
        shown.appendData(visible(event.text));
      }
    }
    const { ids, timings } = this.reply;
    const rate = timings?.decode_tok_s ? ` · ${Math.round(timings.decode_tok_s)} tokens/s` : "";
    this.speed.textContent = `${ids.length} tokens${rate}`;
  }

  /** Show where it parts from the other one. @param {[string, string, string]} parts before, there, after */
  mark([before, there, after], note) {
    const mark = element("mark", { "data-test": "compare-diff", title: note }, visible(there) || "∎");
    this.text.replaceChildren(visible(before), mark, visible(after));
  }
}

/** The view: two sides, one prompt. */
export class Compare {
  #parts;
  #readSystem;
  #sides;
  #running = null;
  #prompt = element("textarea", { id: "compare-prompt", "data-test": "compare-prompt", rows: "2", placeholder: "Ask both" });
  #seed = element("input", { id: "compare-seed", "data-test": "compare-seed", type: "number", step: "1", placeholder: "random" });
  #run = button("Compare", () => this.#pressed(), { class: "primary", "data-test": "compare-run" });
  #result = element("div", { class: "result", "data-test": "compare-kl", role: "status" });

  /** @param {{api: object, settings: object}} parts @param {() => string} readSystem */
  constructor(parts, readSystem) {
    this.#parts = parts;
    this.#readSystem = readSystem;
    const { models, model } = parts.settings;
    const other = models.find((one) => one !== model) ?? model;
    this.#sides = SIDES.map((name, i) => new Side(name, models, (i ? other : model)?.id));
    this.#prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.#running) this.#pressed();
    });
    this.element = element(
      "div",
      { class: "compare" },
      element("label", { for: "compare-prompt" }, "One prompt for both, with the conversation’s system prompt"),
      this.#prompt,
      element("div", { class: "row" }, element("label", { for: "compare-seed" }, "Seed"), this.#seed, this.#run),
      element("div", { class: "sides" }, ...this.#sides.map((side) => side.element)),
      this.#result,
    );
  }

  async #pressed() {
    if (this.#running) return this.#running.abort();
    const prompt = this.#prompt.value.trim();
    if (!prompt) return this.#prompt.focus();
    this.#running = new AbortController();
    this.#run.textContent = "Stop";
    this.#result.replaceChildren();
    try {
      await this.#compare(prompt, this.#running.signal);
    } catch (error) {
      if (error.name !== "AbortError") this.#result.replaceChildren(element("p", { class: "error", role: "alert" }, visible(error.message)));
      this.#parts.watch.noticed(error);
    }
    this.#running = null;
    this.#run.textContent = "Compare";
  }

  async #compare(prompt, signal) {
    const { api, settings } = this.#parts;
    const system = this.#readSystem();
    const messages = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: prompt }];
    if (!this.#seed.value) this.#seed.value = crypto.getRandomValues(new Uint32Array(1))[0] % MAX_SEED;
    const common = { ...settings.sampling, seed: this.#seed.valueAsNumber };
    await Promise.all(this.#sides.map((side) => side.run(api, messages, common, signal)));
    const isOneVocabulary = await this.#isOneVocabulary();
    await (isOneVocabulary ? this.#markTokens() : this.#markText());
    await this.#showDivergence(messages, isOneVocabulary, signal);
  }

  /** Whether both read the same text as the same ids. */
  async #isOneVocabulary() {
    const [a, b] = this.#sides.map((side) => side.reply);
    if (a.model === b.model) return true;
    const input = { prompt: `${a.text}\n${b.text}`, add_special_tokens: false };
    const [one, other] = await Promise.all([a, b].map(({ model }) => this.#parts.api.tokenize(model, input)));
    return firstDifference(one.tokens, other.tokens) === Math.max(one.tokens.length, other.tokens.length);
  }

  async #markTokens() {
    const at = firstDifference(...this.#sides.map((side) => side.reply.ids));
    const differs = this.#sides.some((side) => at < side.reply.ids.length);
    for (const side of differs ? this.#sides : []) {
      const { ids, model } = side.reply;
      const pieces = [ids.slice(0, at), ids.slice(at, at + 1), ids.slice(at + 1)];
      const texts = await Promise.all(pieces.map((part) => this.#parts.api.detokenize(model, part)));
      side.mark([texts[0].trimStart(), ...texts.slice(1)], `token ${at + 1}, the first that differs`);
    }
    const found = differs ? `They differ from token ${at + 1} on.` : "They are the same, token for token.";
    this.#result.append(element("p", {}, found));
  }

  #markText() {
    const at = firstDifference(...this.#sides.map((side) => [...side.reply.text]));
    for (const side of this.#sides) {
      const characters = [...side.reply.text];
      const parts = [characters.slice(0, at), characters.slice(at, at + 1), characters.slice(at + 1)];
      side.mark(parts.map((part) => part.join("")), `character ${at + 1}, the first that differs`);
    }
    this.#result.append(element("p", {}, `They differ from character ${at + 1} on. Their tokens are not the same ones.`));
  }

  async #showDivergence(messages, isOneVocabulary, signal) {
    const [a, b] = this.#sides.map((side) => side.reply);
    if (!isOneVocabulary || !a.ids.length) {
      this.#result.append(element("p", { class: "hint" }, "No KL: it needs two models with one vocabulary."));
      return;
    }
    if (a.model === b.model) {
      this.#result.append(element("p", { class: "hint" }, "KL 0: one model and one prompt have the same probabilities; only how tokens are drawn from them differs."));
      return;
    }
    const [p, q] = await Promise.all([a, b].map(({ model }) => this.#scored(model, messages, a.ids, signal)));
    const values = p.map((token, i) => divergence(token.top, q[i].top));
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const peak = values.indexOf(Math.max(...values));
    const label = `KL(A‖B) at each token of A’s reply: at least ${mean.toFixed(4)} nats a token, ${values[peak].toFixed(3)} at its highest`;
    const detail = element("figcaption", {}, tellToken(p, q, values, peak));
    const svg = strip(values, label, (i) => (detail.textContent = tellToken(p, q, values, i)));
    this.#result.append(
      element("p", {}, `${label}.`),
      element("figure", { class: "strip" }, svg, detail),
      element("p", { class: "hint" }, `An estimate from below: from the ${TOP} most probable tokens that each tells of.`),
    );
  }

  async #scored(model, messages, ids, signal) {
    const { tokens: prompt } = await this.#parts.api.tokenize(model, { messages }, signal);
    const entries = await this.#parts.api.scores(model, [...prompt, ...ids], TOP, signal);
    return toTokens(ids, entries.slice(prompt.length));
  }
}

function tellToken(p, q, values, i) {
  return `Token ${i + 1}, “${visible(p[i].text)}”: ${values[i].toFixed(4)} nats; A gave it ${percent(p[i].logprob)}, B ${percent(q[i].logprob)}.`;
}
