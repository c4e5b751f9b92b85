"use strict";
// The page of mlx_deltamem.server: a chat beside the memory. No library, no build step. Text of the server only reaches
// the page as text nodes, so that nothing in a reply or in a memory can become HTML.

// ---- Small helpers ----

const $ = (id) => document.getElementById(id);

/** An element with properties and children. Strings become text nodes. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const finite = (value) => (typeof value === "number" && Number.isFinite(value) ? value : 0);
const mean = (numbers) => (numbers.length ? numbers.reduce((a, b) => a + b, 0) / numbers.length : 0);
/** The numbers of an object that has one for each layer. */
const byLayer = (object) => Object.values(object ?? {}).flat().filter((value) => typeof value === "number" && Number.isFinite(value));
const short = (value) => (value === 0 ? "0" : Math.abs(value) >= 1e-3 && Math.abs(value) < 1e4 ? String(+value.toPrecision(3)) : value.toExponential(1));
const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

/** The least of 1, 1.5, 2, 3, 5, 10 times a power of ten that is not below a number. */
function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 5, 10].map((step) => step * power).find((step) => step >= value * 0.9999);
}

/** A colour of the style sheet as [red, green, blue]. An element has to have it, for `light-dark()` to be resolved. */
function colour(name) {
  const probe = make("span", { hidden: true });
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const numbers = getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  probe.remove();
  return numbers;
}
const css = (rgb, alpha = 1) => `rgb(${rgb.join(" ")} / ${alpha})`;

/** Call a function once for many calls: before the next frame, or after some time. */
function once(action, delay = null) {
  let due = false;
  const run = () => { due = false; action(); };
  return () => {
    if (due) return;
    due = true;
    if (delay === null) requestAnimationFrame(run); else setTimeout(run, delay);
  };
}

// Storage is refused in some private windows; the page works without it.
function stored(storage, name) { try { return window[storage].getItem(`deltamem-${name}`); } catch { return null; } }
function store(storage, name, value) { try { window[storage].setItem(`deltamem-${name}`, value); } catch { /* as above */ } }

// ---- Requests ----

const PLAIN = {
  0: "The server does not answer. Check that it is still running.",
  400: "The server does not accept this.",
  401: "The server asks for an API key.",
  403: "The server does not allow this.",
  404: "The server does not have this.",
  409: "This memory is in use elsewhere, or the change does not fit.",
  412: "The memory was changed by someone else meanwhile. Look at it and try again.",
  413: "This is too large for the server.",
  422: "The server cannot use this file or text.",
  429: "The server is busy. Try again in a moment.",
  503: "The server does not accept requests now. It may be ending.",
  507: "The server's disk is full.",
};

class ServerError extends Error {
  constructor(status, detail) {
    const plain = PLAIN[status] ?? (status >= 500 ? "Something went wrong in the server." : `The server answered with status ${status}.`);
    super(detail ? `${plain}\n${detail}` : plain);
    this.status = status;
  }
}

let apiKey = stored("sessionStorage", "key");
let keyQuestion = null;

/** Ask for the key once for all requests that wait for it. */
function askKey(refused) {
  keyQuestion ??= ask({
    title: "API key", text: refused ? "The server refused this key." : PLAIN[401], label: "Key", button: "Use", password: true,
    check: (value) => (/^[\x21-\x7e]+$/.test(value) ? "" : "A key has letters, digits and signs, without spaces."),
  }).then((value) => {
    if (value !== null) { apiKey = value; store("sessionStorage", "key", value); }
    return value;
  }).finally(() => { keyQuestion = null; });
  return keyQuestion;
}

/**
 * Send a request and return the response. Raises a ServerError, or an AbortError if it was stopped.
 * With `quiet`, a missing key is an error and is not asked for.
 */
async function request(path, { quiet = false, ...options } = {}) {
  for (;;) {
    const used = apiKey;
    const headers = new Headers(options.headers);
    if (used) headers.set("Authorization", `Bearer ${used}`);
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError(0, "");
    }
    if (response.ok) return response;
    if (response.status !== 401 || quiet) throw new ServerError(response.status, await errorText(response));
    // The key may have been given while this request was on its way.
    if (used === apiKey && (await askKey(used)) === null) throw new ServerError(401, "");
  }
}

async function errorText(response) {
  try {
    const error = (await response.json()).error;
    return String((typeof error === "string" ? error : error?.message) ?? "");
  } catch {
    return "";
  }
}

const getJson = async (path) => (await request(path)).json();
const send = (method, path, body, headers = {}) => request(path, {
  method, headers: body === undefined ? headers : { "Content-Type": "application/json", ...headers },
  body: body === undefined ? undefined : JSON.stringify(body),
});
const memoryPath = (name, rest = "") => `v1/memories/${encodeURIComponent(name)}${rest}`;

/** The server-sent events of a response: {event, data}. EventSource cannot send a key, so fetch reads them. */
async function* serverEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", event = "message", data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { event, data: data.join("\n") };
          event = "message"; data = [];
        } else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line.startsWith("event:")) event = line.slice(6).trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Ask for a reply. Calls `onText` with each new text; returns {usage, finish}. */
async function streamReply(messages, memory, signal, onText) {
  const response = await request("v1/chat/completions", {
    method: "POST", signal,
    headers: { "Content-Type": "application/json", "X-Deltamem-Memory": memory.mode === "read" ? `${memory.name}:ro` : memory.name },
    body: JSON.stringify({ model: state.model, messages, stream: true, stream_options: { include_usage: true }, memory }),
  });
  let usage = null, finish = null;
  try {
    for await (const { data } of serverEvents(response)) {
      if (data === "[DONE]") return { usage, finish };
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(chunk.error.status ?? 500, String(chunk.error.message ?? ""));
      usage = chunk.usage ?? usage;
      const choice = chunk.choices?.[0];
      finish = choice?.finish_reason ?? finish;
      if (choice?.delta?.content) onText(choice.delta.content);
    }
  } catch (error) {
    if (error instanceof ServerError || error.name === "AbortError") throw error;
    throw new ServerError(0, "The reply broke off.");
  }
  if (finish === null) throw new ServerError(0, "The reply broke off.");
  return { usage, finish };
}

// ---- State and errors ----

const NAME = /^(?!\.)[A-Za-z0-9._-]{1,64}$/;
const FIRST_NAME = "my-memory";
const state = {
  model: "", memories: [], taken: new Set(), name: null, etag: null,
  chat: [],          // The messages that are sent again with the next one.
  stopping: null,    // The AbortController of the reply that is being generated.
};

function showError(error) {
  if (error?.name === "AbortError") return;
  $("error-text").textContent = error instanceof Error ? error.message : String(error);
  $("error").hidden = false;
}
function clearError() { $("error").hidden = true; $("error-text").textContent = ""; }

/** Run an action of the user: clear the old error, show a new one. */
async function attempt(action) {
  clearError();
  try {
    return await action();
  } catch (error) {
    showError(error);
    if (error.status === 412) refreshSoon();
    return undefined;
  }
}

/** Ask in a dialog. Returns the text, true if there is no field, or null if the user cancels. */
function ask({ title, text = "", label = "", value = "", button, area = false, password = false, check = () => "" }) {
  const dialog = $("dialog"), field = area ? $("dialog-area") : $("dialog-input");
  if (dialog.open) dialog.close();
  $("dialog-title").textContent = title;
  $("dialog-text").textContent = text;
  $("dialog-text").hidden = !text;
  $("dialog-label").textContent = label;
  $("dialog-label").htmlFor = field.id;
  $("dialog-label").hidden = !label;
  $("dialog-input").type = password ? "password" : "text";
  for (const one of [$("dialog-input"), $("dialog-area")]) { one.hidden = !label || one !== field; one.value = ""; }
  field.value = value;
  $("dialog-problem").textContent = "";
  $("dialog-ok").textContent = button;
  dialog.showModal();
  if (label) field.select();
  return new Promise((resolve) => {
    let result = null;
    $("dialog-form").onsubmit = (event) => {
      event.preventDefault();
      const problem = label ? check(field.value) : "";
      $("dialog-problem").textContent = problem;
      if (problem) { field.focus(); return; }
      result = label ? field.value : true;
      dialog.close();
    };
    $("dialog-cancel").onclick = () => dialog.close();
    dialog.addEventListener("close", () => { field.value = ""; resolve(result); }, { once: true });
  });
}

function checkName(name) {
  if (!NAME.test(name)) return "A name has 1 to 64 letters, digits, dots, dashes and underscores, and does not begin with a dot.";
  return "";
}
const checkNewName = (name) => checkName(name) || (state.taken.has(name) ? "There is a memory with this name." : "");

/** A name that no memory has: the given one, or with a number. */
function freeName(base) {
  for (let number = 1; ; number++) {
    const name = number === 1 ? base : `${base.slice(0, 60)}-${number}`;
    if (!state.taken.has(name)) return name;
  }
}

// ---- Memories ----

/** The model, and the names of all memories. `v1/memories` leaves out those that cannot be opened. */
async function loadModels() {
  const models = (await getJson("v1/models")).data ?? [];
  // The list also has a name for each memory: MODEL@NAME.
  state.model = (models.find(({ id }) => !id.includes("@")) ?? models[0])?.id ?? "";
  $("model").textContent = state.model;
  state.taken = new Set(models.map(({ id }) => id.replace(/:ro$/, "").split("@").at(-1)));
}

async function loadMemories() {
  const found = (await getJson("v1/memories")).data;
  state.memories = Array.isArray(found) ? found : [];
  await loadModels();
  const names = state.memories.map((memory) => memory.name);
  if (!names.includes(state.name)) await choose(names.includes(stored("localStorage", "memory")) ? stored("localStorage", "memory") : names[0] ?? null);
  showNames();
}

function showNames() {
  const options = state.memories.map(({ name }) => make("option", { value: name, textContent: name, selected: name === state.name }));
  if (!options.length) options.push(make("option", { value: "", textContent: "none yet" }));
  $("memory").replaceChildren(...options);
  showBusy();
}

/** Show another memory. The chat starts anew unless `keepChat` says that it is part of the memory. */
async function choose(name, keepChat = false) {
  state.name = name;
  state.etag = null;
  if (name) store("localStorage", "memory", name);
  if (!keepChat) newChat();
  heat.clear(); gate.clear(); drift.set({}); showTurns([], []); showFacts(null);
  listen();
  await refresh();
}

async function makeMemory(name) {
  await send("POST", "v1/memories", { name });
  await choose(name);
  await loadMemories();
}

async function forkMemory() {
  const from = state.name;
  const name = await ask({
    title: `Fork ${from}`, text: "Makes a copy of the memory. What is written afterwards goes into the copy only.",
    label: "Name of the copy", value: freeName(`${from}-fork`.slice(0, 64)), button: "Fork", check: checkNewName,
  });
  if (name === null) return;
  await send("POST", memoryPath(from, "/fork"), { name });
  await choose(name, true);
  await loadMemories();
}

const ifMatch = () => (state.etag ? { "If-Match": state.etag } : {});

async function undoTurn() {
  const turns = (await getJson(memoryPath(state.name, "/turns"))).data ?? [];
  await send("POST", memoryPath(state.name, "/undo"), undefined, ifMatch());
  const undone = turns.at(-1)?.messages ?? [];
  const asked = undone.findLast((message) => message.role === "user")?.content;
  // The chat is sent again with the next message: a turn that stayed in it would be written again.
  if (state.chat.length >= 2 && asked !== undefined && state.chat.at(-2).content === asked) {
    state.chat.splice(-2);
    [...$("log").querySelectorAll(".message")].slice(-2).forEach((element) => element.remove());
    if (!$("question").value) $("question").value = asked;
  }
  gate.clear();
  await refresh();
}

async function rememberText() {
  const text = await ask({
    title: "Remember a text", text: "The text is written into the memory, without a reply.", label: "Text", button: "Remember", area: true,
    check: (value) => (value.trim() ? "" : "Write some text."),
  });
  if (text === null) return;
  gate.clear();
  await send("POST", memoryPath(state.name, "/remember"), { text }, ifMatch());
  await refresh();
}

async function resetMemory() {
  const sure = await ask({ title: `Reset ${state.name}?`, text: "Everything in this memory is forgotten, and cannot be taken back. Export the file first to keep a copy.", button: "Reset" });
  if (!sure) return;
  await send("POST", memoryPath(state.name, "/reset"), undefined, ifMatch());
  await choose(state.name);
}

async function deleteMemory() {
  const sure = await ask({ title: `Delete ${state.name}?`, text: "The memory and its file are deleted, and cannot be taken back.", button: "Delete" });
  if (!sure) return;
  await send("DELETE", memoryPath(state.name), undefined, ifMatch());
  await loadMemories();
}

async function exportMemory() {
  const address = URL.createObjectURL(await (await request(memoryPath(state.name, "/export"))).blob());
  make("a", { href: address, download: `${state.name}.safetensors` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

async function importMemory(file) {
  const base = file.name.replace(/\.safetensors$/i, "").replace(/[^A-Za-z0-9._-]+/g, "-").slice(0, 64);
  const name = await ask({
    title: "Import a session file", text: `${file.name}\nA memory that has this name already is replaced.`,
    label: "Name of the memory", value: checkName(base) ? FIRST_NAME : base, button: "Import", check: checkName,
  });
  if (name === null) return;
  await request(memoryPath(name, "/import"), { method: "PUT", body: file, headers: { "Content-Type": "application/octet-stream" } });
  await choose(name);
  await loadMemories();
}

// ---- What is known about the memory ----

/** Read the facts, the states, the drift and the turns again. */
async function refresh() {
  const name = state.name;
  showBusy();
  if (name === null) {
    showFacts(null); showTurns([], []);
    $("heat-none").textContent = "There is no memory yet. Make one with “New…”, or send a message.";
    $("heat-none").hidden = false;
    return;
  }
  const info = request(memoryPath(name)).then(async (response) => [response.headers.get("ETag"), await response.json()]);
  const parts = [info, ...["/heatmap.json", "/drift.json", "/turns"].map((rest) => getJson(memoryPath(name, rest)))];
  const settled = await Promise.allSettled(parts);
  if (name !== state.name) return;
  // One part that fails does not hide the others.
  const [known, heatmap, drifted, turns] = settled.map((part) => part.value);
  state.etag = known?.[0] ?? null;
  showFacts(known?.[1]);
  if (heatmap) heat.setBase(heatmap.layers);
  if (drifted) drift.set(drifted);
  if (turns) showTurns(turns.data ?? [], drifted?.borders ?? []);
  const failed = settled.find((part) => part.status === "rejected");
  if (failed) throw failed.reason;
}
const refreshSoon = once(() => refresh().catch(showError), 150);

function showFacts(facts) {
  state.turns = facts?.turns ?? 0;
  $("facts").textContent = facts ? `${count(facts.turns, "turn")} · ${count(facts.tokens, "token")} · ${short(facts.state_bytes / 1024)} KiB` : "";
  showBusy();
}

function showTurns(turns, borders) {
  const shown = 200, first = Math.max(0, turns.length - shown), starts = new Set(borders);
  const items = turns.slice(first).map((turn, offset) => {
    const index = first + offset;
    const parts = [`${index + 1}`, turn.remembered ? "remembered text" : "turn"];
    const changed = byLayer(turn.changed);
    if (changed.length) parts.push(`moved the memory by ${short(mean(changed))}`);
    if (starts.has(index)) parts.unshift("new topic");
    const lines = (turn.messages ?? []).map((message) =>
      make("p", { className: "said" }, make("span", { className: "who", textContent: `${message.role}: ` }), messageText(message)));
    return make("li", { className: starts.has(index) ? "border" : "", id: `turn-${index}` }, make("p", { className: "meta", textContent: parts.join(" · ") }), ...lines);
  });
  if (first) items.unshift(make("li", { className: "meta", textContent: `${count(first, "earlier turn")} not shown` }));
  if (!turns.length) items.push(make("li", { className: "none", textContent: "Nothing was written yet." }));
  $("turns").replaceChildren(...items);
}

/** The text of a message; of tool calls, their names. */
function messageText(message) {
  const calls = (message.tool_calls ?? []).map((call) => `[calls ${call.function?.name}]`);
  return [typeof message.content === "string" ? message.content : JSON.stringify(message.content ?? ""), ...calls].filter(Boolean).join(" ");
}

let listening = null;

/** Listen to the events of the memory, and connect again if the connection ends. */
async function listen() {
  listening?.abort();
  const stop = listening = new AbortController(), name = state.name;
  $("live").textContent = "";
  for (let wait = 1000; name !== null && !stop.signal.aborted; wait = Math.min(wait * 2, 30_000)) {
    try {
      const response = await request(memoryPath(name, "/events"), { quiet: true, signal: stop.signal, headers: { Accept: "text/event-stream" } });
      $("live").textContent = "live";
      wait = 1000;
      for await (const { event, data } of serverEvents(response)) {
        if (stop.signal.aborted) return;
        const told = JSON.parse(data);
        // The kind is the name of the event, or a field of its data; else the fields tell it.
        onEvent(event !== "message" ? event : told.type ?? told.event ?? ("beta" in told ? "token" : "turn"), told);
      }
    } catch {
      // A key that was refused is asked for by the next action of the user, not by each try.
    }
    if (stop.signal.aborted) return;
    $("live").textContent = "not live: connecting again";
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

function onEvent(kind, data) {
  if (kind === "token") {
    gate.add(data);
    heat.update(data.heat, data.norms);
  } else if (kind === "turn") {
    gate.end();
    refreshSoon();
  } else if (kind === "deleted") {
    attempt(loadMemories);
  }
}

// ---- Heat maps ----

const heat = {
  tiles: new Map(),   // By "layer/head": {layer, head, values, before, norm, canvas, label}.
  large: null,        // The key of the map that is shown large.

  clear() { this.tiles.clear(); $("heat-grid").replaceChildren(); $("heat-legend").hidden = true; $("heat-none").hidden = true; },

  /** Take the states of the server. What was there before the turn stays, to show the change. */
  setBase(layers) {
    const keys = (layers ?? []).map(({ layer, head }) => `${layer}/${head ?? 0}`);
    if (keys.join() !== [...this.tiles.keys()].join()) {
      this.clear();
      this.build(layers ?? []);
    }
    for (const { layer, head, values } of layers ?? []) {
      const tile = this.tiles.get(`${layer}/${head ?? 0}`);
      // The states may be read more than once after a turn.
      if (JSON.stringify(values) !== JSON.stringify(tile.base)) { tile.before = tile.base; tile.base = values; }
      tile.values = values;
      tile.norm = null;
    }
    $("heat-none").hidden = keys.length > 0;
    $("heat-none").textContent = "The server has no states of this memory to show.";
    this.draw();
  },

  /** Take the states and norms that came with a token. */
  update(layers, norms) {
    for (const { layer, head, values } of layers ?? []) {
      const tile = this.tiles.get(`${layer}/${head ?? 0}`);
      if (!tile) continue;
      tile.before = tile.base;
      tile.values = values;
      tile.norm = null;
    }
    for (const tile of this.tiles.values()) {
      const norm = norms?.[tile.layer];
      if (!layers && norm !== undefined) tile.norm = finite(Array.isArray(norm) ? norm[tile.head] : norm);
    }
    this.draw();
  },

  build(layers) {
    const heads = new Set(layers.map(({ head }) => head ?? 0)).size > 1;
    for (const { layer, head } of layers) {
      const key = `${layer}/${head ?? 0}`, canvas = make("canvas"), norm = make("i");
      const name = heads ? `${layer} · ${head ?? 0}` : `${layer}`;
      const title = heads ? `Layer ${layer}, head ${head ?? 0}` : `Layer ${layer}`;
      const button = make("button", { className: "tile", title, type: "button" }, canvas, make("span", {}, name, norm));
      button.setAttribute("aria-label", `${title}: enlarge`);
      button.addEventListener("click", () => this.enlarge(key));
      $("heat-grid").append(button);
      this.tiles.set(key, { layer, head: head ?? 0, title, values: [], canvas, label: norm, norm: null });
    }
  },

  shown(tile) {
    if ($("heat-view").value === "state") return tile.values;
    const before = tile.before ?? tile.values;
    return tile.values.map((row, y) => row.map((value, x) => finite(value) - finite(before[y]?.[x])));
  },

  paint() {
    if (!this.tiles.size) return;
    const palette = [colour("negative"), colour("zero"), colour("positive")];
    const maps = [...this.tiles].map(([key, tile]) => ({ key, tile, values: this.shown(tile) }));
    const peak = (values) => values.reduce((most, row) => row.reduce((one, value) => Math.max(one, Math.abs(finite(value))), most), 0);
    const common = Math.max(...maps.map(({ values }) => peak(values)));
    const each = $("heat-scale").value === "each";
    for (const { key, tile, values } of maps) {
      const limit = each ? peak(values) : common;
      drawMap(tile.canvas, values, limit, palette);
      const norm = tile.norm ?? Math.sqrt(values.flat().reduce((sum, value) => sum + finite(value) ** 2, 0));
      tile.label.textContent = short(+norm.toPrecision(2));
      if (key === this.large) {
        drawMap($("large-map"), values, limit, palette);
        $("large-title").textContent = tile.title;
        if (!this.pointed) $("large-readout").textContent = `Norm ${short(norm)}; the colours reach from ${short(-limit)} to ${short(limit)}`;
      }
    }
    drawRamp(palette);
    $("heat-legend").hidden = false;
    $("heat-low").textContent = each ? "−largest" : short(-common);
    $("heat-high").textContent = each ? "largest" : short(common);
  },

  enlarge(key) { this.large = key; this.pointed = false; if (!$("large").open) $("large").showModal(); this.paint(); },

  step(by) {
    const keys = [...this.tiles.keys()];
    this.enlarge(keys[(keys.indexOf(this.large) + by + keys.length) % keys.length]);
  },

  point(event) {
    const tile = this.tiles.get(this.large), box = $("large-map").getBoundingClientRect();
    if (!tile) return;
    const values = this.shown(tile), rows = values.length, columns = values[0]?.length ?? 0;
    const y = Math.floor((event.clientY - box.top) / box.height * rows), x = Math.floor((event.clientX - box.left) / box.width * columns);
    this.pointed = values[y]?.[x] !== undefined;
    if (this.pointed) $("large-readout").textContent = `Row ${y + 1}, column ${x + 1}: ${short(finite(values[y][x]))}`;
  },
};
heat.draw = once(() => heat.paint());

/** Draw a matrix, one pixel a number. The style sheet makes the pixels large. */
function drawMap(canvas, values, limit, palette) {
  const rows = values.length, columns = values[0]?.length ?? 0;
  if (!rows || !columns) return;
  if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  for (let y = 0, at = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++, at += 4) setPixel(image.data, at, limit ? finite(values[y][x]) / limit : 0, palette);
  }
  context.putImageData(image, 0, 0);
}

/** Set a pixel to the colour of a number from -1 to 1. */
function setPixel(data, at, value, [negative, zero, positive]) {
  const share = Math.min(1, Math.abs(value)), end = value < 0 ? negative : positive;
  for (let channel = 0; channel < 3; channel++) data[at + channel] = zero[channel] + (end[channel] - zero[channel]) * share;
  data[at + 3] = 255;
}

function drawRamp(palette) {
  const canvas = $("heat-ramp"), context = canvas.getContext("2d"), image = context.createImageData(canvas.width, 1);
  for (let x = 0; x < canvas.width; x++) setPixel(image.data, 4 * x, 2 * x / (canvas.width - 1) - 1, palette);
  context.putImageData(image, 0, 0);
}

// ---- Charts ----

const MARGIN = { left: 40, right: 8, top: 8, bottom: 20 };

/** Clear a chart and draw its axis from 0 to `top`, or a text if it is empty. Returns what is needed to draw in it. */
function startChart(canvas, top, empty) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width || !height) return null;
  Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  const context = canvas.getContext("2d"), soft = css(colour("soft")), line = css(colour("line"));
  context.scale(ratio, ratio);
  const plot = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
  const y = (value) => MARGIN.top + plot.height * (1 - Math.min(1, value / top));
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = soft;
  if (empty) {
    context.fillText(empty, MARGIN.left, height / 2);
    return null;
  }
  context.strokeStyle = line;
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const value of [0, top / 2, top]) {
    context.fillText(short(value), MARGIN.left - 6, y(value));
    context.beginPath(); context.moveTo(MARGIN.left, y(value)); context.lineTo(width - MARGIN.right, y(value)); context.stroke();
  }
  context.textBaseline = "alphabetic";
  return { context, plot, y, width, height };
}

/** Write the numbers of things under a chart, as many as there is room for. */
function numberAxis({ context, plot, height }, length, place) {
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].find((step) => length / step * 34 <= plot.width) ?? length;
  context.fillStyle = css(colour("soft"));
  context.textAlign = "center";
  for (let index = 0; index < length; index++) if ((index + 1) % every === 0) context.fillText(String(index + 1), place(index), height - 5);
}

const gate = {
  kept: 2000,     // Tokens that the chart keeps.
  tokens: [],
  ended: false,   // The next token begins another turn.

  clear() { this.tokens = []; this.ended = false; $("gate-tokens").replaceChildren(); $("gate-readout").textContent = ""; this.draw(); },
  end() { this.ended = true; },

  add({ text, beta }) {
    const values = byLayer(beta);
    if (this.ended) this.clear();
    if (!values.length) return;
    const token = { text: String(text ?? ""), mean: mean(values), low: Math.min(...values), high: Math.max(...values) };
    token.element = make("span", { textContent: token.text, title: `β ${short(token.mean)}` });
    this.tokens.push(token);
    if (this.tokens.length > this.kept) this.tokens.shift().element.remove();
    const box = $("gate-tokens"), atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 30;
    box.append(token.element);
    if (atEnd) box.scrollTop = box.scrollHeight;
    this.draw();
  },

  place(index, plot) { return MARGIN.left + plot.width * (index + 0.5) / Math.max(this.tokens.length, 20); },

  paint() {
    const tokens = this.tokens, top = roundUp(Math.max(0, ...tokens.map((token) => token.high)));
    const chart = startChart($("gate-chart"), top, tokens.length ? "" : "Appears as the memory is written");
    const average = mean(tokens.map((token) => token.mean));
    $("gate-chart").setAttribute("aria-label", tokens.length ? `β over ${count(tokens.length, "token")}: mean ${short(average)}` : "No tokens yet");
    if (!chart) return;
    const { context, plot, y } = chart, rgb = colour("gate"), x = (index) => this.place(index, plot);
    numberAxis(chart, tokens.length, x);
    context.beginPath();
    tokens.forEach((token, index) => context.lineTo(x(index), y(token.high)));
    for (let index = tokens.length - 1; index >= 0; index--) context.lineTo(x(index), y(tokens[index].low));
    context.fillStyle = css(rgb, 0.2);
    context.fill();
    context.beginPath();
    tokens.forEach((token, index) => context.lineTo(x(index), y(token.mean)));
    Object.assign(context, { strokeStyle: css(rgb), lineWidth: 1.5, lineJoin: "round" });
    context.stroke();
    if (tokens.length === 1) { context.fillStyle = css(rgb); context.fillRect(x(0) - 1.5, y(tokens[0].mean) - 1.5, 3, 3); }
    const means = tokens.map((token) => token.mean), low = Math.min(...means), range = Math.max(...means) - low;
    for (const token of tokens) {
      const share = (range ? (token.mean - low) / range : 0).toFixed(2);
      if (token.share !== share) token.element.style.setProperty("--beta", token.share = share);
    }
  },

  point(event) {
    const box = $("gate-chart").getBoundingClientRect(), plot = { width: box.width - MARGIN.left - MARGIN.right };
    const index = Math.floor((event.clientX - box.left - MARGIN.left) / plot.width * Math.max(this.tokens.length, 20));
    const token = this.tokens[index];
    $("gate-readout").textContent = token ? `${index + 1}: “${token.text.trim()}” β ${short(token.mean)} (${short(token.low)} to ${short(token.high)})` : "";
  },
};
gate.draw = once(() => gate.paint());

const drift = {
  turns: [], borders: [],

  set({ turns, borders }) {
    this.turns = (turns ?? []).map(({ changed, kept }) => ({ changed: mean(byLayer(changed)), kept: byLayer(kept).length ? mean(byLayer(kept)) : null }));
    this.borders = borders ?? [];
    this.draw();
  },

  place(index, plot) { return MARGIN.left + plot.width * (index + 0.5) / Math.max(this.turns.length, 12); },

  paint() {
    const { turns, borders } = this, top = roundUp(Math.max(1, ...turns.map((turn) => turn.changed)));
    const chart = startChart($("drift-chart"), top, turns.length ? "" : "Appears after the first turn");
    $("drift-chart").setAttribute("aria-label", turns.length ? `The drift of ${count(turns.length, "turn")}, with ${count(borders.length, "change")} of topic. The list of turns has the numbers.` : "No turns yet");
    if (!chart) return;
    const { context, plot, y, height } = chart, x = (index) => this.place(index, plot), slot = plot.width / Math.max(turns.length, 12);
    numberAxis(chart, turns.length, x);
    const wide = Math.max(1, Math.min(26, slot * 0.6));
    context.fillStyle = css(colour("accent"), 0.75);
    turns.forEach((turn, index) => context.fillRect(x(index) - wide / 2, y(turn.changed), wide, y(0) - y(turn.changed)));
    context.fillStyle = css(colour("positive"));
    turns.forEach((turn, index) => {
      if (turn.kept === null) return;
      context.beginPath(); context.arc(x(index), y(turn.kept), Math.min(3, Math.max(1, slot / 3)), 0, 2 * Math.PI); context.fill();
    });
    context.strokeStyle = css(colour("border"));
    context.setLineDash([4, 3]);
    for (const index of borders) {
      if (index <= 0 || index >= turns.length) continue;
      context.beginPath(); context.moveTo(x(index) - slot / 2, MARGIN.top); context.lineTo(x(index) - slot / 2, height - MARGIN.bottom); context.stroke();
    }
    context.setLineDash([]);
  },

  at(event) {
    const box = $("drift-chart").getBoundingClientRect();
    return Math.floor((event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right) * Math.max(this.turns.length, 12));
  },

  point(event) {
    const index = this.at(event), turn = this.turns[index];
    const kept = turn && turn.kept !== null ? `, a token kept ${short(turn.kept)}` : "";
    $("drift-readout").textContent = turn ? `Turn ${index + 1}: changed ${short(turn.changed)}${kept}` : "";
    $("turns").querySelector(".marked")?.classList.remove("marked");
    $(`turn-${index}`)?.classList.add("marked");
  },

  click(event) { $("turns-box").open = true; $(`turn-${this.at(event)}`)?.scrollIntoView({ block: "nearest" }); },
};
drift.draw = once(() => drift.paint());

// ---- The chat ----

function newChat() {
  state.chat = [];
  for (const element of [...$("log").children]) if (element !== $("welcome")) element.remove();
}

/** Add an element to the chat, and keep the end in sight. */
function addToLog(element) { $("log").append(element); $("log").scrollTop = $("log").scrollHeight; }

/** Keep the end of the chat in sight while text is added, unless the user scrolled up. */
function withEnd(change) {
  const log = $("log"), atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function showMessage(role, text) {
  const said = make("div", { className: "said" }, text), meta = make("p", { className: "meta" });
  const element = make("article", { className: `message ${role}` }, make("p", { className: "who", textContent: role === "user" ? "You" : "Model" }), said, meta);
  addToLog(element);
  return { element, meta, write(more) { withEnd(() => said.append(more)); } };
}

function showBusy() {
  const busy = state.stopping !== null, none = state.name === null;
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  for (const id of ["memory", "new-memory", "new-chat", "compare", "import"]) $(id).disabled = busy;
  for (const id of ["fork", "remember", "export", "reset", "delete"]) $(id).disabled = busy || none;
  $("undo").disabled = busy || none || !state.turns;
}

/** Run what takes some time and can be stopped. */
async function whileBusy(action) {
  const stop = state.stopping = new AbortController();
  showBusy();
  try {
    await attempt(() => action(stop.signal));
  } finally {
    state.stopping = null;
    showBusy();
  }
}

/** The memory in use. The first message makes one. */
async function neededMemory() { if (state.name === null) await makeMemory(freeName(FIRST_NAME)); return state.name; }

function takeQuestion() {
  const text = $("question").value;
  if (!text.trim() || state.stopping) return null;
  $("question").value = "";
  return text.toWellFormed?.() ?? text;
}
function giveBack(text) { if (!$("question").value) $("question").value = text; }

async function say() {
  const text = takeQuestion();
  if (text === null) return;
  await whileBusy(async (signal) => {
    let asked, reply, said = "";
    try {
      const memory = { name: await neededMemory(), mode: $("mode").value };
      asked = showMessage("user", text);
      reply = showMessage("assistant", "");
      reply.element.classList.add("busy");
      gate.clear();
      const end = await streamReply([...state.chat, { role: "user", content: text }], memory, signal, (more) => { said += more; reply.write(more); });
      reply.meta.textContent = described(end, memory);
    } catch (error) {
      // A reply that was stopped ends at its last token; any other failure leaves nothing.
      if (error.name !== "AbortError" || !said) {
        asked?.element.remove(); reply?.element.remove();
        giveBack(text);
        throw error;
      }
      reply.meta.textContent = "stopped";
    } finally {
      reply?.element.classList.remove("busy");
    }
    state.chat.push({ role: "user", content: text }, { role: "assistant", content: said });
    $("spoken").textContent = said;
    refreshSoon();
  });
}

/** What happened with a reply, in a line. */
function described({ usage, finish }, asked) {
  const memory = usage?.memory, parts = [];
  if (memory?.written) parts.push(`written into ${memory.name}`);
  else parts.push(asked.mode === "off" ? "memory off, nothing written" : "nothing written");
  if (usage?.completion_tokens) parts.push(count(usage.completion_tokens, "token"));
  if (finish === "length") parts.push("cut at the greatest length");
  if (memory?.note) parts.push(String(memory.note));
  return parts.join(" · ");
}

/** Ask one question in three ways. None of them writes into the memory. */
async function compare() {
  const text = takeQuestion();
  if (text === null) return;
  await whileBusy(async (signal) => {
    const name = await neededMemory(), messages = [...state.chat, { role: "user", content: text }];
    // With the memory on, the question is written as it is read. A copy takes it, and is deleted.
    const copy = `${name.slice(0, 48)}.compare-${Math.random().toString(36).slice(2, 8)}`;
    const ways = [["Memory on", { name: copy, mode: "write" }], ["Read-only", { name, mode: "read" }], ["Memory off", { name, mode: "off" }]];
    const columns = ways.map(([title]) => column(title));
    addToLog(make("article", { className: "comparison" },
      make("p", { className: "who", textContent: "Side by side: the memory and the chat stay as they are" }),
      make("div", { className: "said", textContent: text }), make("div", { className: "columns" }, ...columns.map(({ element }) => element))));
    const forked = send("POST", memoryPath(name, "/fork"), { name: copy });
    try {
      await Promise.all(ways.map(async ([, memory], index) => {
        if (memory.name === copy) await forked.catch((error) => columns[index].fail(error));
        if (!columns[index].failed) await columns[index].fill(messages, memory, signal);
      }));
    } finally {
      await forked.then(() => send("DELETE", memoryPath(copy)), () => {});
    }
    $("spoken").textContent = columns.map(({ title, text: said }) => `${title}: ${said()}`).join("\n");
  });
}

/** A column of the comparison. */
function column(title) {
  const said = make("div", { className: "said" }), note = make("p", { className: "meta" });
  const element = make("section", { className: "column busy" }, make("p", { className: "who", textContent: title }), said, note);
  const made = {
    title, element, failed: false, text: () => said.textContent,
    fail(error) {
      made.failed = true;
      element.classList.remove("busy");
      note.textContent = error.name === "AbortError" ? "stopped" : error.message;
      note.classList.toggle("problem", error.name !== "AbortError");
    },
    async fill(messages, memory, signal) {
      try {
        const { usage } = await streamReply(messages, memory, signal, (more) => withEnd(() => said.append(more)));
        note.textContent = usage?.completion_tokens ? count(usage.completion_tokens, "token") : "";
        element.classList.remove("busy");
      } catch (error) {
        made.fail(error);
      }
    },
  };
  return made;
}

// ---- Start ----

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme; else delete document.documentElement.dataset.theme;
  $("theme").value = theme;
  store("localStorage", "theme", theme);
  redraw();
}
function redraw() { heat.draw(); gate.draw(); drift.draw(); }

/** Connect a button with an action that may fail. */
const onClick = (id, action) => $(id).addEventListener("click", () => { $("more").open = false; attempt(action); });

function connect() {
  onClick("new-memory", async () => {
    const name = await ask({ title: "New memory", label: "Name", value: freeName(FIRST_NAME), button: "Make", check: checkNewName });
    if (name !== null) await makeMemory(name);
  });
  onClick("fork", forkMemory);
  onClick("undo", undoTurn);
  onClick("remember", rememberText);
  onClick("reset", resetMemory);
  onClick("delete", deleteMemory);
  onClick("export", exportMemory);
  onClick("import", () => $("import-file").click());
  onClick("new-chat", () => { newChat(); $("question").focus(); });
  $("import-file").addEventListener("change", () => {
    const file = $("import-file").files[0];
    if (file) attempt(() => importMemory(file)).finally(() => { $("import-file").value = ""; });
  });
  $("memory").addEventListener("change", () => attempt(() => choose($("memory").value || null)));
  $("theme").addEventListener("change", () => setTheme($("theme").value));
  $("error-close").addEventListener("click", clearError);
  $("composer").addEventListener("submit", (event) => { event.preventDefault(); say(); });
  $("compare").addEventListener("click", compare);
  $("stop").addEventListener("click", () => state.stopping?.abort());
  $("heat-view").addEventListener("change", heat.draw);
  $("heat-scale").addEventListener("change", heat.draw);
  $("large-close").addEventListener("click", () => $("large").close());
  $("large").addEventListener("close", () => { heat.large = null; });
  $("large-map").addEventListener("pointermove", (event) => heat.point(event));
  $("large-map").addEventListener("pointerleave", () => { heat.pointed = false; heat.draw(); });
  $("gate-chart").addEventListener("pointermove", (event) => gate.point(event));
  $("drift-chart").addEventListener("pointermove", (event) => drift.point(event));
  $("drift-chart").addEventListener("click", (event) => drift.click(event));
  document.addEventListener("keydown", onKey);
  document.addEventListener("click", (event) => { if (!$("more").contains(event.target)) $("more").open = false; });
  // Another client may have made or deleted a memory.
  document.addEventListener("visibilitychange", () => { if (!document.hidden && !state.stopping) loadMemories().catch(showError); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  new ResizeObserver(redraw).observe($("panel"));
}

function onKey(event) {
  // While a word is being composed (Japanese, Chinese), Enter belongs to the input method.
  // Safari says so by the code 229 only.
  if (event.isComposing || event.keyCode === 229) return;
  if ($("large").open && (event.key === "ArrowLeft" || event.key === "ArrowRight")) heat.step(event.key === "ArrowLeft" ? -1 : 1);
  if (document.querySelector("dialog[open]")) return;
  const writing = event.target === $("question");
  if (writing && event.key === "Enter" && !event.shiftKey && !event.altKey) {
    event.preventDefault();
    if (event.ctrlKey || event.metaKey) compare(); else say();
  } else if (event.key === "Escape") {
    if ($("more").open) { $("more").open = false; $("more").querySelector("summary").focus(); } else state.stopping?.abort();
  } else if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.target.closest?.("input, textarea, select")) {
    event.preventDefault();
    $("question").focus();
  }
}

async function start() {
  setTheme(stored("localStorage", "theme") ?? "");
  connect();
  showNames();
  await attempt(async () => {
    await loadMemories();
    if (state.name === null) await refresh();
  });
  $("question").focus();
}

start();
