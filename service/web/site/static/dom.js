// Helpers for the DOM, for numbers and for the clipboard, used by every part of the page.

export const byId = (id) => document.getElementById(id);

/** Make an element: properties are set, `data` and `aria` become attributes, children are text or elements. */
export function make(tag, properties = {}, ...children) {
  const { data = {}, aria = {}, ...own } = properties;
  const element = Object.assign(document.createElement(tag), own);
  Object.assign(element.dataset, data);
  for (const [name, value] of Object.entries(aria)) element.setAttribute(`aria-${name}`, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const show = (element, visible = true) => { element.hidden = !visible; };

export const count = (number) => number.toLocaleString("en");

export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

/** Scroll a changed element into view after layout: elements that appear above it would move it otherwise. */
export const reveal = (element, block = "nearest") =>
  requestAnimationFrame(() => element.scrollIntoView({ block, behavior: "smooth" }));

export function bytes(number) {
  const units = ["bytes", "KB", "MB", "GB", "TB"];
  let at = 0;
  let amount = number;
  while (amount >= 1000 && at < units.length - 1) { amount /= 1000; at += 1; }
  return `${at ? amount.toFixed(amount < 10 ? 1 : 0) : amount} ${units[at]}`;
}

export function duration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  const [whole, rest, units] = seconds < 3600 ? [60, 1, ["min", "s"]] : [3600, 60, ["h", "min"]];
  const small = Math.floor((seconds % whole) / rest);
  return `${Math.floor(seconds / whole)} ${units[0]}${small ? ` ${small} ${units[1]}` : ""}`;
}

/** Copy text to the clipboard, and confirm it on the pressed button. */
export async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select and copy it";
  }
  setTimeout(() => { button.textContent = before; }, 2000);
}

/** A random UUID; `crypto.randomUUID` exists only in secure contexts (https or localhost). */
export function uuid() {
  const random = crypto.getRandomValues(new Uint8Array(16));
  random[6] = (random[6] & 0x0f) | 0x40;
  random[8] = (random[8] & 0x3f) | 0x80;
  const hex = Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
