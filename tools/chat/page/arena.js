// One question, two answers whose names are told after the vote; and what came of all votes.

import { withSystem } from "./chat.js";
import { events, get, post } from "./endpoint.js";
import { asking, following, paced } from "./form.js";
import * as markdown from "./markdown.js";
import { request } from "./settings.js";
import { $, element, told, word } from "./words.js";

const SIDES = ["first", "second"];
let battle = null;

async function compare(text, signal) {
  const names = [$("rival").value, $("other").value];
  if (names[0] === names[1]) {
    verdict(word("same"), true);
    return false;
  }
  battle = null;
  $("invitation").hidden = $("votes").hidden = true;
  $("asked").hidden = $("duel").hidden = false;
  $("asked").replaceChildren(...markdown.plain(text));
  verdict("");
  const answers = ["", ""];
  SIDES.forEach(clear);
  const draw = (live) => following($("arena"), () => SIDES.forEach((side, place) => markdown.show($(side), answers[place], live)));
  const pace = paced(draw);
  $("duel").setAttribute("aria-busy", "true");
  try {
    const body = { ...request(), checkpoints: names, messages: withSystem([{ role: "user", content: text }]) };
    for await (const event of events("/api/battles", body, signal)) {
      for (const { index, delta } of event.choices) answers[index] += delta.content;
      pace.soon();
      if (event.battle) ready(event.battle);
      if (event.undecidable) reveal(event.names, word(event.undecidable === "equal" ? "equal" : "one_empty"));
    }
  } catch (error) {
    verdict(error.name === "AbortError" ? word("stopped") : told(error), error.name !== "AbortError");
    return false;
  } finally {
    pace.now();
    $("duel").removeAttribute("aria-busy");
  }
  return true;
}

function clear(side) {
  $(side).replaceChildren();
  $(`${side}-title`).textContent = word(side);
  $(side).parentElement.classList.remove("best");
}

function ready(id) {
  battle = id;
  $("votes").hidden = false;
  $("status").textContent = word("ready");
}

async function vote({ target }) {
  const choice = target.value;
  if (!choice || !battle) return;
  const [id, buttons] = [battle, $("votes").querySelectorAll("button")];
  battle = null;
  buttons.forEach((button) => (button.disabled = true));
  try {
    const names = await (await post("/api/votes", { battle: id, vote: choice })).json();
    $("votes").hidden = true;
    $(choice)?.parentElement.classList.add("best");
    reveal(names, word("thanks"));
    $("prompt").focus();
    results();
  } catch (error) {
    battle = id;
    verdict(told(error), true);
  }
  buttons.forEach((button) => (button.disabled = false));
}

function reveal(names, text) {
  for (const [side, name] of Object.entries(names)) $(`${side}-title`).append(" · ", element("bdi", {}, name));
  verdict(text);
}

function verdict(text, fault = false) {
  $("verdict").textContent = text;
  $("verdict").classList.toggle("fault", fault);
}

// --- what came of all votes

export async function results() {
  const { results: rows } = await get("/api/results").catch(() => ({ results: [] }));
  const header = ["pair", "votes", "won", "ties", "lost", "win_rate"].map((name) => element("th", { scope: "col" }, word(name)));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...header)), element("tbody", {}, ...rows.map(line)));
  $("results-table").replaceChildren(rows.length ? table : word("no_votes"));
}

function line({ names, weights, votes, won, ties, lost, win_rate: rate, ci_low: low, ci_high: high }) {
  const pair = names.map((name, place) => element("bdi", { title: weights[place] }, name));
  const percent = (share) => `${Math.round(100 * share)}`;
  const cells = [votes, won, ties, lost, `${percent(rate)}% (${percent(low)}–${percent(high)})`];
  const numbers = cells.map((value) => element("td", { dir: "ltr" }, String(value)));
  return element("tr", {}, element("th", { scope: "row" }, pair[0], " · ", pair[1]), ...numbers);
}

export function start(server) {
  $("rival").value = server.rivals[0];
  $("other").value = server.rivals.at(-1);
  if (server.checkpoints.length < 2) $("invitation").textContent = word("lone");
  results();
}

asking($("arena-form"), compare);
$("votes").addEventListener("click", vote);
