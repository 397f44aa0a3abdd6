// What a model says, as elements: Markdown and formulas, sanitised; each block in its own direction.

import DOMPurify from "./vendor/purify.mjs";
import MarkdownIt from "./vendor/markdown-it.mjs";
import remend from "./vendor/remend.mjs";
import { element, word } from "./words.js";

// No raw HTML. No headings by a line of dashes and no code by four blanks: half said, both turn a paragraph into something else.
const markdown = MarkdownIt({ html: false, linkify: true, breaks: true }).disable(["lheading", "code", "image"]);
markdown.linkify.set({ fuzzyLink: false, fuzzyEmail: false });

const KEPT = {
  USE_PROFILES: { html: true, mathMl: true },
  FORBID_TAGS: ["style", "form", "input", "button", "textarea", "select", "img", "video", "audio", "picture"],
  FORBID_ATTR: ["style", "class", "id", "name"],
  RETURN_DOM_FRAGMENT: true,
};

// --- formulas, as TeX in $…$, $$…$$, \(…\) and \[…\]

const INLINE = [/\$\$([^]+?)\$\$/y, /\\\[([^]+?)\\\]/y, /\\\((.+?)\\\)/y, /\$(?![\s$])([^$\n]*?[^\s$\\])\$(?!\d)/y];
const CLOSES = { $$: "$$", "\\[": "\\]" };
let katex = null;
let loading = null;

function push(state, text, display) {
  Object.assign(state.push("math", "math", 0), { content: text, meta: { display } });
  return true;
}

markdown.inline.ruler.before("escape", "math", (state, silent) => {
  for (const [place, pattern] of INLINE.entries()) {
    pattern.lastIndex = state.pos;
    const found = pattern.exec(state.src);
    if (!found) continue;
    state.pos = pattern.lastIndex;
    return silent || push(state, found[1], place < 2);
  }
  return false;
});

markdown.block.ruler.before("fence", "math", (state, start, end, silent) => {
  const line = (n) => state.src.slice(state.bMarks[n] + state.tShift[n], state.eMarks[n]).trimEnd();
  const close = CLOSES[line(start).slice(0, 2)];
  if (!close) return false;
  let [last, text] = [start, line(start).slice(2)];
  while (!text.endsWith(close)) {
    if (++last >= end) return false;
    text += `\n${line(last)}`;
  }
  if (silent) return true;
  state.line = last + 1;
  return push(state, text.slice(0, -2), true);
}, { alt: ["paragraph"] });

markdown.renderer.rules.math = (tokens, place) => {
  const { content, meta } = tokens[place];
  if (!katex) {
    loading ??= import("./vendor/katex.js").then(() => (katex = self.katex));
    return `<code>${markdown.utils.escapeHtml(content)}</code>`;
  }
  const made = katex.renderToString(content, { output: "mathml", displayMode: meta.display, throwOnError: false });
  return made.replace(/<annotation[^]*?<\/annotation>/g, "");
};

// The page's policy takes no styles, which the alignment of a table's columns would be.
markdown.core.ruler.push("plain", ({ tokens }) => {
  for (const token of tokens) token.attrs = token.attrs?.filter(([name]) => name !== "style") ?? null;
});

// --- from text to elements

const MARKS = /^\s*(?:[-*+>]|#{1,6}|\d+[.)]|[-*_=~`$]{1,3}|\\\[?)\s*$/;
const DELIMITERS = /^\s*\|?[ :|-]*-[ :|-]*$/;

// Of an answer that is still coming, what can be shown so that it does not jump: bold, links and code closed where they are not yet;
// a table from the end of its second line on, a mark that begins a line from its first word on.
function settled(text) {
  const fences = text.match(/^\s*(```|~~~)/gm) ?? [];
  if (fences.length % 2) return text;
  const lines = text.split("\n");
  const ended = lines.at(-1) === "";
  if (ended) lines.pop();
  const rows = lines.length - 1 - lines.findLastIndex((line) => !line.trimStart().startsWith("|"));
  const [head, delimiters] = lines.slice(lines.length - rows);
  if (rows > 2 || (rows === 2 && ended)) return DELIMITERS.test(delimiters) ? text : closed(text);
  if (head !== undefined) return closed(lines.slice(0, -rows).join("\n"));
  return closed(MARKS.test(lines.at(-1) ?? "") ? lines.slice(0, -1).join("\n") : text);
}

// Marks at the very end that open nothing yet are left out.
const closed = (text) => remend(text.replace(/(^|\s)[*_~`$[]{1,3}$/, "$1"), { setextHeadings: false });

// The direction of a text: right to left where it begins so, or where most of its letters are written so.
export function direction(text) {
  const [right, left] = [text.match(/[\p{Script=Arabic}\p{Script=Hebrew}]/gu) ?? [], text.match(/[\p{Script=Latin}\p{Script=Greek}\p{Script=Cyrillic}]/gu) ?? []];
  if (!left.length) return right.length ? "rtl" : "";
  if (!right.length) return "ltr";
  return right.length >= left.length || text.search(/[\p{Script=Arabic}\p{Script=Hebrew}]/u) < text.search(/\p{Script=Latin}/u) ? "rtl" : "ltr";
}

const DIRECTED = "p, h1, h2, h3, h4, h5, h6, ul, ol, blockquote, table, td, th";

function directed(fragment) {
  for (const block of fragment.querySelectorAll(DIRECTED)) {
    const copy = block.cloneNode(true);
    for (const code of copy.querySelectorAll("code, pre, math")) code.remove();
    block.dir = direction(copy.textContent) || block.parentElement?.closest("[dir]")?.dir || document.dir;
  }
  for (const code of fragment.querySelectorAll("code, math")) code.dir = "ltr";
  return fragment;
}

function finished(fragment) {
  for (const pre of fragment.querySelectorAll("pre")) {
    pre.tabIndex = 0;
    pre.dir = "ltr";
    const copy = element("button", { type: "button", class: "quiet copy-code" }, word("copy"));
    const block = element("div", { class: "code", dir: "ltr" });
    pre.replaceWith(block);
    block.append(copy, pre);
  }
  for (const table of fragment.querySelectorAll("table")) {
    const scroller = element("div", { class: "table", tabindex: 0, role: "group", "aria-label": word("table"), dir: table.dir });
    table.replaceWith(scroller);
    scroller.append(table);
  }
  for (const link of fragment.querySelectorAll("a[href]")) Object.assign(link, { target: "_blank", rel: "noopener noreferrer" });
  return fragment;
}

// `live`: the text is still coming.
export function rendered(text, live = false) {
  return finished(directed(DOMPurify.sanitize(markdown.render(live ? settled(text) : text), KEPT)));
}

// Show a text in a place, keeping every node that stays the same, and with it what is selected there.
export function show(place, text, live = false) {
  const fragment = rendered(text, live);
  morph(place, fragment);
  if (loading && !katex) loading.then(() => show(place, text, live));
}

// What a person wrote: as it stands, line by line.
export function plain(text) {
  return text.split("\n").map((line) => element("p", { dir: direction(line) || "auto" }, line));
}

function morph(old, made) {
  const [before, after] = [[...old.childNodes], [...made.childNodes]];
  after.forEach((node, place) => {
    const was = before[place];
    if (!was) old.append(node);
    else if (was.nodeName !== node.nodeName) was.replaceWith(node);
    else if (was.nodeType === Node.TEXT_NODE) grown(was, node.data);
    else alike(was, node);
  });
  before.slice(after.length).forEach((node) => node.remove());
}

function alike(was, node) {
  if (was.isEqualNode(node)) return;
  for (const { name } of [...was.attributes]) if (!node.hasAttribute(name)) was.removeAttribute(name);
  for (const { name, value } of node.attributes) if (was.getAttribute(name) !== value) was.setAttribute(name, value);
  morph(was, node);
}

// A selection outlives text that is added at the end, but not text that is replaced.
function grown(was, data) {
  if (data.startsWith(was.data)) was.appendData(data.slice(was.data.length));
  else was.data = data;
}
