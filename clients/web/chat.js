/**
 * The page's beginning: the conversation on screen and the composer. What a reply is made of lies in
 * inspector.js, comparing in compare.js; both are fetched when they are asked for.
 */

import { Api } from "./api.js";
import { element, MessageView, visible } from "./message.js";
import { KeyBox, note, Settings, Sidebar, StatusStrip, Watch } from "./panel.js";
import * as store from "./store.js";

const find = (id) => document.getElementById(id);

const COUNT_MS = 250;
const SAVE_MS = 2000;
const NEAR_PX = 80;
const SAID_LENGTH = 200;
const MAX_STOPS = 4;

/** The conversation that is shown, and the reply that is under way. */
class Chat {
  #parts;
  #column = element("div", { class: "column" });
  #views = [];
  #running = null;
  #sticks = true;
  #counting = { timer: 0, controller: null };

  /** @param {{api: Api, settings: Settings, shelf: store.Shelf, watch: Watch}} parts */
  constructor(parts) {
    this.#parts = parts;
    this.conversation = store.newConversation();
    this.onSaved = () => {};
    find("messages").replaceChildren(this.#column);
    find("messages").addEventListener("scroll", () => this.#noteScroll());
    new ResizeObserver(() => this.#follow()).observe(this.#column);
    this.#listen();
  }

  #listen() {
    const draft = find("draft");
    find("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    draft.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    draft.addEventListener("input", () => this.count());
    find("stop").addEventListener("click", () => this.stop());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.defaultPrevented && !document.querySelector("dialog[open]")) this.stop();
    });
    find("system").addEventListener("input", () => {
      this.conversation.system = find("system").value;
      this.count();
    });
    find("system").addEventListener("change", () => this.#views.length && this.#save(this.conversation));
  }

  /** Show another conversation. A reply that is under way goes on. */
  open(conversation) {
    this.conversation = conversation;
    showCompare(false);
    find("system").value = conversation.system;
    for (const view of this.#views) view.element.remove();
    this.#views = [];
    this.#sticks = true;
    this.draw();
    if (matchMedia("(hover: hover)").matches) find("draft").focus(); // a phone's keyboard would cover half of it
  }

  /** Bring the screen to the path that is chosen: what is the same stays. */
  draw() {
    const path = store.pathOf(this.conversation);
    const same = path.findIndex((message, i) => this.#views[i]?.message !== message);
    for (const view of this.#views.splice(same < 0 ? path.length : same)) view.element.remove();
    for (const message of path.slice(this.#views.length)) this.#addView(message);
    document.title = this.conversation.title ? `${visible(this.conversation.title)} · Causerie` : "Causerie";
    this.#column.dataset.empty = String(!path.length);
    this.#column.dataset.model = this.#parts.settings.model?.id ?? "";
    this.count();
  }

  #addView(message) {
    const all = store.siblingsOf(this.conversation, message);
    const siblings = { place: all.indexOf(message) + 1, count: all.length };
    const view = new MessageView(message, siblings, {
      regenerate: ({ message }) => this.#answer(this.#parentOf(message)),
      retry: ({ message }) => this.#retry(message),
      edit: ({ message }, text) => this.#edit(message, text),
      sibling: ({ message }, by) => this.#step(message, by),
      inspect: (shown, pressed) => this.#inspect(shown, pressed),
    });
    this.#views.push(view);
    this.#column.append(view.element);
  }

  #parentOf(message) {
    return this.conversation.messages[message.parent];
  }

  /** Send the draft. */
  send() {
    const text = find("draft").value.trim();
    if (!text || this.#running) return;
    find("draft").value = "";
    const last = this.#views.at(-1)?.message.id ?? null;
    this.#sticks = true;
    this.#answer(store.addMessage(this.conversation, last, "user", { text }));
  }

  #edit(message, text) {
    if (this.#running || !text.trim()) return;
    this.#answer(store.addMessage(this.conversation, message.parent, "user", { text: text.trim() }));
  }

  #step(message, by) {
    const all = store.siblingsOf(this.conversation, message);
    store.choose(this.conversation, all[all.indexOf(message) + by]);
    this.draw();
    this.#save(this.conversation);
    const shown = this.#views.find((view) => view.message.parent === message.parent);
    const hook = by < 0 ? "sibling-prev" : "sibling-next";
    shown?.element.querySelector(`[data-test=${hook}]:not([disabled])`)?.focus();
  }

  /** The same question again, in the place of the reply that failed. */
  #retry(message) {
    if (this.#running) return;
    if (!message.text) delete this.conversation.messages[message.id];
    this.#answer(this.#parentOf(message));
  }

  /** Ask for a reply to a message. @param {store.Message} question */
  #answer(question) {
    const { settings, api } = this.#parts;
    if (this.#running || !question) return;
    const { conversation } = this;
    const model = settings.model?.id;
    const messages = store.toRequest(conversation.system, store.pathTo(conversation, question));
    const request = { model, messages, truncation: "drop_oldest", ...settings.sampling };
    const reply = store.addMessage(conversation, question.id, "assistant", { model, ids: [], state: "streaming" });
    return this.#run(conversation, reply, (signal) => api.chat(request, signal));
  }

  /**
   * Another reply: the tokens of one up to a place, another token there, and what the model says then. By
   * ids, because the same text may be made of other tokens.
   */
  async branch(message, prompt, index, id) {
    const { settings, api } = this.#parts;
    if (this.#running) return;
    const { conversation } = this;
    const { model, parent, dropped } = message;
    const own = settings.models.find((one) => one.id === model) ?? settings.model;
    const stop = own.default_sampling.stop.slice(0, MAX_STOPS);
    const ids = [...message.ids.slice(0, index), id];
    const [lead, added] = await Promise.all([api.detokenize(model, ids), api.detokenize(model, [id])]);
    const begun = cutAt(stop, lead);
    const fields = { model, dropped, ids, given: ids.length, text: begun.trimStart() };
    const reply = store.addMessage(conversation, parent, "assistant", { ...fields, state: "streaming" });
    const max_tokens = own.default_sampling.max_tokens ?? own.max_model_len;
    const request = { model, prompt: [...prompt, ...ids], max_tokens, stop, ...settings.sampling };
    const isOver = begun !== lead || added === ""; // the token that was chosen is the reply's end
    return this.#run(conversation, reply, async function* (signal) {
      if (isOver) return;
      yield* api.complete(request, signal);
      if (!lead.endsWith("\ufffd")) return; // or else it was cut inside of a character, which is whole by now
      yield { kind: "whole", text: cutAt(stop, await api.detokenize(model, reply.ids)).trimStart() };
    });
  }

  async #run(conversation, reply, ask) {
    const controller = new AbortController();
    this.#setRunning({ controller, conversation, reply, savedAt: Date.now() });
    this.draw();
    try {
      for await (const event of ask(controller.signal)) this.#take(reply, event);
      reply.state = "done";
    } catch (error) {
      this.#fail(reply, error);
    }
    this.#setRunning(null);
    this.#viewOf(reply)?.update();
    this.#say(reply);
    this.count();
    await this.#save(conversation);
  }

  #take(reply, event) {
    if (event.kind === "text") {
      reply.text += reply.text ? event.text : event.text.trimStart();
      reply.ids.push(...event.ids);
      this.#viewOf(reply)?.grow();
      if (Date.now() - this.#running.savedAt > SAVE_MS) this.#saveSoon();
    } else {
      const { kind, ...fields } = event;
      Object.assign(reply, fields);
    }
  }

  #fail(reply, error) {
    if (error.name === "AbortError") {
      reply.state = "stopped";
      return;
    }
    if (!error.message || !("status" in error || error.constructor.name === "ServerGone")) console.error(error);
    const { message, code = "", retryAfter = null } = error;
    Object.assign(reply, { state: "error", error: { message, code, retryAfter } });
    this.#parts.watch.noticed(error);
  }

  #viewOf(message) {
    return this.#views.find((view) => view.message === message);
  }

  #setRunning(running) {
    this.#running = running;
    find("send").hidden = Boolean(running);
    find("stop").hidden = !running;
  }

  /** End the reply that is under way; what has come stays. */
  stop() {
    this.#running?.controller.abort();
  }

  #say(reply) {
    const said = reply.error?.message ?? reply.text;
    find("live").textContent = `${reply.state === "done" ? "Reply" : `Reply ${reply.state}`}: ${said.slice(0, SAID_LENGTH)}`;
  }

  #saveSoon() {
    this.#running.savedAt = Date.now();
    this.#save(this.#running.conversation);
  }

  async #save(conversation) {
    try {
      await this.#parts.shelf.put(conversation);
    } catch (error) {
      note(error.message);
    }
    this.onSaved(conversation);
  }

  #noteScroll() {
    const { scrollHeight, scrollTop, clientHeight } = find("messages");
    this.#sticks = scrollHeight - scrollTop - clientHeight < NEAR_PX;
  }

  #follow() {
    if (this.#sticks) find("messages").scrollTop = find("messages").scrollHeight;
  }

  /** Tokens of the conversation and its draft, once nobody has typed for a moment. */
  count() {
    clearTimeout(this.#counting.timer);
    this.#counting.controller?.abort();
    this.#counting.timer = setTimeout(() => this.#count(), COUNT_MS);
  }

  async #count() {
    const { settings, api, watch } = this.#parts;
    const { model } = settings;
    const draft = find("draft").value.trim();
    const path = [...store.pathOf(this.conversation), ...(draft ? [{ role: "user", text: draft }] : [])];
    if (!model) return;
    this.#counting.controller = new AbortController();
    try {
      const messages = store.toRequest(this.conversation.system, path);
      const { count } = messages.length ? await api.count(model.id, messages, this.#counting.controller.signal) : { count: 0 };
      find("count").textContent = `${count} / ${model.max_model_len} tokens`;
      find("count").dataset.over = String(count >= model.max_model_len);
    } catch (error) {
      if (error.name !== "AbortError") find("count").textContent = "";
      watch.noticed(error);
    }
  }

  async #inspect(view, pressed) {
    const isOpen = pressed.getAttribute("aria-expanded") === "true";
    pressed.setAttribute("aria-expanded", String(!isOpen));
    view.host.replaceChildren();
    if (isOpen) return;
    const { Inspector } = await import("./inspector.js");
    const path = store.pathTo(this.conversation, this.#parentOf(view.message));
    const messages = store.toRequest(this.conversation.system, path, view.message.dropped);
    const branch = (prompt, index, id) => this.branch(view.message, prompt, index, id).catch((error) => note(error.message));
    view.host.replaceChildren(new Inspector(this.#parts.api, view.message, messages, branch).element);
  }
}

/** A text up to the first of its stop strings. @param {string[]} stops */
function cutAt(stops, text) {
  const found = stops.map((one) => text.indexOf(one)).filter((at) => at >= 0);
  return text.slice(0, Math.min(text.length, ...found));
}

async function toggleCompare(parts, chat) {
  const { Compare } = await import("./compare.js");
  const view = find("compare-view");
  if (!view.firstChild && parts.settings.models.length) view.append(new Compare(parts, () => chat.conversation.system).element);
  showCompare(view.hidden);
}

/** Show the comparison in the conversation's place, or that again. */
function showCompare(isOpen) {
  find("compare-view").hidden = !isOpen;
  find("conversation").hidden = isOpen;
  find("compare").setAttribute("aria-pressed", String(isOpen));
}

async function begin() {
  const keys = new KeyBox();
  const api = new Api(() => keys.read(), () => keys.ask());
  const parts = { api, settings: new Settings(), shelf: new store.Shelf(), watch: new Watch(api) };
  const chat = new Chat(parts);
  const sidebar = new Sidebar(chat, parts.shelf);
  const strip = new StatusStrip(api);
  const connect = async () => {
    try {
      parts.settings.showModels(await api.models());
      strip.start();
      chat.draw();
    } catch (error) {
      parts.watch.noticed(error);
    }
  };
  keys.onSaved(connect);
  parts.watch.onBack = connect;
  parts.settings.onModel = () => chat.draw();
  find("compare").addEventListener("click", () => toggleCompare(parts, chat));
  if (!(await parts.shelf.open())) note("This browser keeps nothing for this page: conversations end with the tab.");
  await Promise.all([sidebar.load(), connect()]); // whatever is kept, the server can be talked to
}

begin();
