/**
 * What surrounds the conversation: the list of all, what a person sets (model, sampling, theme, key), and
 * how the server is (status strip, banner). Refuses to know what is said.
 */

import { ServerGone } from "./api.js";
import { button, element, visible } from "./message.js";
import * as store from "./store.js";

const find = (id) => document.getElementById(id);

const NUMBERS = { temperature: "temperature", "top-p": "top_p", "top-k": "top_k", seed: "seed", "max-tokens": "max_tokens" };
/** Fields of the panel and what a request calls them. */
const STATUS_MS = 2000;
const WAITS_MS = [500, 1000, 2000, 4000, 8000];
const KEPT = "causerie-settings";
const KEY = "causerie-key";

function keep(storage, name, value) {
  try {
    if (value === null) storage.removeItem(name);
    else storage.setItem(name, value);
  } catch {
    // a browser that keeps nothing: it holds until the page is closed
  }
}

function kept(storage, name) {
  try {
    return storage.getItem(name);
  } catch {
    return null;
  }
}

function parsed(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

/** What Escape does where it does not stop a reply. @param {() => void} close */
const onEscape = (close) => (event) => {
  if (event.key !== "Escape") return;
  event.preventDefault();
  close();
};

/** The key that was typed: for this tab, or for longer if asked to. */
export class KeyBox {
  #dialog = find("key-dialog");
  #key = kept(sessionStorage, KEY) ?? kept(localStorage, KEY) ?? "";
  #onSaved = () => {};

  constructor() {
    find("key-dialog").querySelector("form").addEventListener("submit", () => this.#save());
    find("key-cancel").addEventListener("click", () => this.#dialog.close());
    find("open-key").addEventListener("click", () => this.ask("Sent to this server only."));
  }

  read() {
    return this.#key;
  }

  /** @param {() => void} listener called after a key was typed */
  onSaved(listener) {
    this.#onSaved = listener;
  }

  ask(note = this.#key ? "The server does not know this key." : "This server wants a key. It is sent to this server only.") {
    if (this.#dialog.open) return;
    find("key-note").textContent = note;
    find("key").value = "";
    find("key-remember").checked = kept(localStorage, KEY) !== null;
    this.#dialog.showModal();
  }

  #save() {
    this.#key = find("key").value.trim();
    find("key").value = "";
    const stays = find("key-remember").checked;
    keep(sessionStorage, KEY, stays ? null : this.#key);
    keep(localStorage, KEY, stays ? this.#key : null);
    this.#onSaved();
  }
}

/** Model, sampling and theme; kept between visits. */
export class Settings {
  #models = [];
  #chosen = null;
  onModel = () => {};

  constructor() {
    const saved = parsed(kept(localStorage, KEPT));
    for (const id of Object.keys(NUMBERS)) {
      find(id).value = saved[id] ?? "";
      find(id).addEventListener("change", () => this.#save());
    }
    this.#chosen = saved.model ?? null;
    find("model").addEventListener("change", () => this.#choose(find("model").value));
    find("theme").value = saved.theme ?? "auto";
    find("theme").addEventListener("change", () => this.#save());
    this.#showTheme();
    const toggle = (open) => {
      find("panel").hidden = !open;
      find("settings").setAttribute("aria-expanded", String(open));
      (open ? find("system") : find("settings")).focus();
    };
    find("settings").addEventListener("click", () => toggle(find("panel").hidden));
    find("close-panel").addEventListener("click", () => toggle(false));
    find("panel").addEventListener("keydown", onEscape(() => toggle(false)));
  }

  get models() {
    return this.#models;
  }

  /** The model that is asked. */
  get model() {
    return this.#models.find((one) => one.id === this.#chosen) ?? this.#models[0] ?? null;
  }

  /** What is set, in a request's words; what is not set is not said. */
  get sampling() {
    const set = Object.entries(NUMBERS).filter(([id]) => find(id).value !== "" && find(id).checkValidity());
    return Object.fromEntries(set.map(([id, name]) => [name, find(id).valueAsNumber]));
  }

  /** @param {object[]} models as /v1/models tells of them */
  showModels(models) {
    this.#models = models;
    const name = this.model?.id;
    find("model").replaceChildren(...models.map(({ id }) => element("option", { value: id, selected: id === name }, id)));
    this.#showDefaults();
  }

  #choose(id) {
    this.#chosen = id;
    this.#showDefaults();
    this.#save();
    this.onModel();
  }

  #showDefaults() {
    const own = this.model?.default_sampling ?? {};
    for (const [id, name] of Object.entries(NUMBERS)) {
      if (id === "seed") continue;
      find(id).placeholder = own[name] ?? (id === "max-tokens" ? "what fits" : "");
    }
  }

  #save() {
    const fields = Object.keys(NUMBERS).map((id) => [id, find(id).value]);
    const saved = { ...Object.fromEntries(fields), model: this.#chosen, theme: find("theme").value };
    keep(localStorage, KEPT, JSON.stringify(saved));
    this.#showTheme();
  }

  #showTheme() {
    document.documentElement.dataset.theme = find("theme").value;
  }
}

/** Says that the server is away, asks until it is back, and says that too. */
export class Watch {
  #api;
  #isWaiting = false;
  onBack = () => {};

  /** @param {import("./api.js").Api} api */
  constructor(api) {
    this.#api = api;
  }

  /** A request failed: if that was because nobody answered, wait for the server. */
  noticed(error) {
    if (error instanceof ServerGone || error.code === "model_loading") this.#wait();
  }

  async #wait() {
    if (this.#isWaiting) return;
    this.#isWaiting = true;
    const banner = find("banner");
    for (let i = 0; ; i++) {
      const state = await this.#api.readiness();
      if (state === "ready") break;
      const text = `${state} Waiting for it…`;
      if (banner.textContent !== text) banner.textContent = text;
      banner.hidden = false;
      await new Promise((resolve) => setTimeout(resolve, WAITS_MS[Math.min(i, WAITS_MS.length - 1)]));
    }
    banner.hidden = true;
    banner.textContent = "";
    find("live").textContent = "The server is back.";
    this.#isWaiting = false;
    this.onBack();
  }
}

/** The strip of what the server is doing, from its metrics, while somebody looks. */
export class StatusStrip {
  #api;
  #before = null;
  #timer = 0;

  /** @param {import("./api.js").Api} api */
  constructor(api) {
    this.#api = api;
    document.addEventListener("visibilitychange", () => this.start());
  }

  /** Begin, or begin again after a 401. */
  start() {
    clearTimeout(this.#timer);
    this.#before = null;
    if (!document.hidden) this.#tick();
  }

  async #tick() {
    try {
      this.#show(await this.#api.metrics());
    } catch (error) {
      find("status").replaceChildren();
      if (error.status === 401 || error.status === 404) return;
    }
    if (!document.hidden) this.#timer = setTimeout(() => this.#tick(), STATUS_MS);
  }

  #show(sums) {
    const at = performance.now();
    const now = { at, tokens: sums.get("generation_tokens_total") ?? 0 };
    const rate = this.#before ? ((now.tokens - this.#before.tokens) * 1000) / (at - this.#before.at) : 0;
    this.#before = now;
    const shown = [
      ["running", sums.get("num_requests_running") ?? 0],
      ["waiting", sums.get("num_requests_waiting") ?? 0],
      ["tokens/s", Math.max(0, Math.round(rate))],
      ["KV", `${Math.round((100 * (sums.get("kv_cache_usage_perc") ?? 0)) / (sums.get("engine_up") || 1))} %`],
    ];
    find("status").replaceChildren(...shown.map(([name, value]) => element("span", {}, `${value} `, element("small", {}, name))));
  }
}

/** The list of conversations, and their files. */
export class Sidebar {
  #chat;
  #shelf;
  #all = [];

  constructor(chat, shelf) {
    this.#chat = chat;
    this.#shelf = shelf;
    chat.onSaved = (conversation) => this.#saved(conversation);
    find("new-chat").addEventListener("click", () => this.#open(store.newConversation(chat.conversation.system)));
    find("export-json").addEventListener("click", () => save("causerie.json", store.toJson(this.#all)));
    find("export-jsonl").addEventListener("click", () => save("causerie.jsonl", store.toJsonl(this.#all)));
    find("import").addEventListener("click", () => find("import-file").click());
    find("import-file").addEventListener("change", (event) => this.#import(event.target));
    find("open-sidebar").addEventListener("click", () => this.#slide(true));
    find("veil").addEventListener("click", () => this.#slide(false));
    find("sidebar").addEventListener("keydown", onEscape(() => this.#slide(false)));
  }

  async load() {
    this.#all = await this.#shelf.all();
    for (const { messages } of this.#all) {
      for (const one of Object.values(messages)) if (one.state === "streaming") one.state = "stopped";
    }
    this.#chat.open(this.#all[0] ?? this.#chat.conversation);
    this.draw();
  }

  draw() {
    find("conversations").replaceChildren(...this.#all.map((one) => this.#item(one)));
  }

  #item(conversation) {
    const isShown = conversation === this.#chat.conversation;
    const title = visible(conversation.title) || "Untitled";
    const open = button(title, () => this.#open(conversation), {
      class: "name",
      "aria-current": isShown ? "true" : null,
    });
    const rename = button("✎", () => this.#rename(conversation, item), { "data-test": "rename", "aria-label": `Rename ${title}` });
    const remove = button("×", () => this.#remove(conversation, remove), { "data-test": "delete", "aria-label": `Delete ${title}` });
    const item = element("li", { "data-test": "conversation", class: isShown ? "shown" : null }, open, rename, remove);
    return item;
  }

  #rename(conversation, item) {
    const box = element("input", { "data-test": "rename-box", "aria-label": "Title" });
    box.value = conversation.title;
    const done = async () => {
      conversation.title = store.titleOf(box.value) || conversation.title;
      await this.#keep(conversation);
      this.draw();
    };
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter") box.blur();
      else if (event.key === "Escape") box.value = "";
    });
    box.addEventListener("blur", done, { once: true });
    item.replaceChildren(box);
    box.focus();
  }

  /** The second press deletes: the first only asks. */
  async #remove(conversation, pressed) {
    if (pressed.textContent !== "Sure?") {
      pressed.textContent = "Sure?";
      setTimeout(() => (pressed.textContent = "×"), 3000);
      return;
    }
    this.#all = this.#all.filter((one) => one !== conversation);
    await this.#shelf.remove(conversation.id);
    if (conversation === this.#chat.conversation) this.#chat.open(this.#all[0] ?? store.newConversation());
    this.draw();
  }

  #open(conversation) {
    this.#chat.open(conversation);
    this.#slide(false);
    this.draw();
  }

  #saved(conversation) {
    this.#all = [conversation, ...this.#all.filter((one) => one !== conversation)];
    this.draw();
    if (this.#all.length > store.LIMITS.conversations) note(`More than ${store.LIMITS.conversations} conversations: export and delete some.`);
  }

  async #keep(conversation) {
    await this.#shelf.put(conversation).catch((error) => note(error.message));
  }

  async #import(input) {
    const [file] = input.files;
    input.value = "";
    try {
      if (file.size > store.LIMITS.fileBytes) throw new Error(`larger than ${store.LIMITS.fileBytes >> 20} MiB`);
      const read = store.fromText(await file.text());
      if (!read.length) throw new Error("no conversation in it");
      if (read.length + this.#all.length > store.LIMITS.conversations) throw new Error(`more than ${store.LIMITS.conversations} conversations`);
      for (const one of read) await this.#shelf.put(one);
      this.#all = [...read, ...this.#all];
      this.#open(read[0]);
    } catch (error) {
      note(`${file.name}: ${error.message}`);
    }
  }

  #slide(open) {
    find("sidebar").classList.toggle("open", open);
    find("veil").hidden = !open;
    find("open-sidebar").setAttribute("aria-expanded", String(open));
    if (open) find("new-chat").focus();
  }
}

/** Something a person should know that is no message; it goes when it is pressed. */
export function note(text) {
  find("note").replaceChildren(text, " ", button("Close", () => find("note").replaceChildren(), { class: "quiet" }));
}

function save(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
