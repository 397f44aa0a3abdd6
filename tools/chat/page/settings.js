// What is set in this browser, and what a question says of it.

import * as store from "./store.js";
import { $, languages } from "./words.js";

export const settings = store.settings();

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

// The part of a question that says how the answer is chosen.
export function request() {
  const said = NUMBERS.map((name) => [name, $(name).value]).filter(([, value]) => value !== "");
  return Object.fromEntries(said.map(([name, value]) => [name, Number(value)]));
}

function keep(name, value) {
  settings[name] = value;
  store.saveSettings(settings);
}

function shown(name) {
  const output = $(`${name}-value`);
  if (output) output.textContent = $(name).value;
}

// A checkpoint that the command line names goes before what this browser remembers, once for each start of the server.
export function start(server) {
  if (server.named && settings.started !== server.started) delete settings.checkpoint;
  settings.started = server.started;
  const defaults = { temperature: server.temperature, top_p: 0.95, max_tokens: "", seed: "" };
  for (const name of NUMBERS) {
    $(name).value = Number.isFinite(Number(settings[name] ?? NaN)) ? settings[name] : defaults[name];
    shown(name);
    $(name).addEventListener("input", () => (keep(name, $(name).value), shown(name)));
  }
  $("system").value = typeof settings.system === "string" ? settings.system : "";
  $("system").placeholder = server.system;
  $("system").addEventListener("input", () => keep("system", $("system").value));
  $("checkpoint").value = server.checkpoints.includes(settings.checkpoint) ? settings.checkpoint : server.checkpoint;
  $("checkpoint").addEventListener("change", () => keep("checkpoint", $("checkpoint").value));
}

// As chosen here; else what the browser's user reads first; else Arabic.
export function language() {
  const read = [settings.language, ...navigator.languages.map((one) => one.slice(0, 2))];
  return read.find((one) => languages.includes(one)) ?? languages[0];
}

export const setLanguage = (value) => keep("language", value);
