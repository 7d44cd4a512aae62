// Elements are made here and nowhere else: text is always a text node, so nothing that a model wrote becomes markup.

function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  return fill(element, attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") element[name] = value;
    else if (name === "style") Object.assign(element.style, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Control characters are made visible; a line of any length may wrap anywhere (by style).
function shown(text) {
  return String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (c) =>
    c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : Number(value).toFixed(digits);
}

function signed(value, digits = 2) {
  return (value > 0 ? "+" : "") + number(value, digits);
}

// Blue above zero and orange below, as told apart by most colour-blind people; stronger with size, full at `full`.
function tint(value, full = 2) {
  const share = Math.min(Math.abs(value) / full, 1);
  if (share < 0.01) return "transparent";
  const color = value > 0 ? "var(--positive)" : "var(--negative)";
  return `color-mix(in srgb, ${color} ${Math.round(10 + 30 * share)}%, transparent)`;
}

function select(label, value, options, onchange, title) {
  const id = `select-${label.replace(/\W+/g, "-")}`;
  const list = h("select", { id, "aria-label": label, title, onchange: (event) => onchange(event.target.value) });
  for (const option of options) {
    const [key, text] = Array.isArray(option) ? option : [option, option];
    list.append(h("option", { value: key, selected: String(key) === String(value) }, String(text)));
  }
  return h("label", { class: "field" }, label, list);
}

const KEYWORDS = new Set(
  ("False None True and as assert async await break class continue def del elif else except finally for from global if " +
    "import in is lambda nonlocal not or pass raise return try while with yield").split(" "),
);
const PYTHON =
  /(#[^\n]*)|("""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)|(\b\d[\w.]*)|([A-Za-z_]\w*)/g;

// Python with its comments, strings, numbers and keywords set apart. Very long code is left plain.
function highlighted(code) {
  if (code.length > 20000) return [shown(code)];
  const parts = [];
  let place = 0;
  for (const match of code.matchAll(PYTHON)) {
    const kind = match[1] ? "comment" : match[2] ? "string" : match[3] ? "number" : KEYWORDS.has(match[4]) ? "keyword" : null;
    if (!kind) continue;
    parts.push(shown(code.slice(place, match.index)), h("span", { class: `py-${kind}` }, shown(match[0])));
    place = match.index + match[0].length;
  }
  return [...parts, shown(code.slice(place))];
}
