"use strict";

// Elements and numbers. Whatever a model or a person wrote gets onto the page as text nodes only, never as markup.

/** Make an element; strings among the children become text nodes. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const span = (kind, ...children) => el("span", { class: kind || null }, ...children);

/** Words for those who do not see the layout. */
const unseen = (text) => span("unseen", text);

/** A text by a model or a person; one of nothing but white space is made visible. */
function written(text, kind) {
  if (text.trim() !== "") return el("span", { class: kind, dir: "auto" }, text);
  return span(`${kind} blank`, text === "" ? "(empty)" : JSON.stringify(text).slice(1, -1));
}

function facts(entries, kind) {
  return el(
    "dl",
    { class: kind },
    entries.map(([name, value, about]) =>
      el("div", {}, el("dt", {}, name), el("dd", {}, value, about ? span("about", about) : null)),
    ),
  );
}

const plural = (count, noun) => `${whole(count)} ${noun}${count === 1 ? "" : "s"}`;
const whole = (count) => count.toLocaleString("en");

function decimal(value, digits = 2) {
  const number = Number(value);
  if (!Number.isFinite(number)) return number > 0 ? "∞" : "−∞";
  const size = Math.abs(number);
  const text = size >= 1e6 ? number.toPrecision(2) : number.toFixed(size >= 100 ? Math.min(digits, 1) : digits);
  return text.replace(/^-(?=[0.]*$)/, "").replaceAll("-", "−");
}

/** A reward as it would be written by hand: 1, 0.5, 0.83. */
const reward = (value) => (value === null ? "no verdict" : decimal(value, 3).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, ""));

function percent(share) {
  const value = 100 * share;
  if (value === 0 || value >= 1) return `${value === 0 ? 0 : value.toFixed(1)} %`;
  return value < 0.01 ? "< 0.01 %" : `${value.toPrecision(2)} %`;
}

/** The standard error of a log-energy, in nats; beyond one nat it says no more than that nothing is known. */
const LARGEST_ERROR = 1;

function plusMinus(error, known = true) {
  if (error === null) return "";
  return known && Number(error) <= LARGEST_ERROR ? ` ± ${decimal(error)}` : ", error unknown";
}

/** The share that a full bar stands for: the next round number above the largest weight. */
function fullBar(largest) {
  const rounds = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1];
  return rounds.find((share) => share >= largest * 0.9999) ?? 1;
}
