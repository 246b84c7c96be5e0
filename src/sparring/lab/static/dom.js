// Small tools: elements, requests, and how numbers are written.

export const $ = (id) => document.getElementById(id);

/** An element; properties that start with "on" are listeners, "data" is a dataset, children are nodes or text. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name === "class") node.className = value;
    else if (name in node && name !== "list" && name !== "role") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export class Complaint extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** JSON from the server; a Complaint, with a line for the person, where it did not work. */
export async function api(path, options = {}) {
  let response;
  if (options.json !== undefined) {
    options = { ...options, method: options.method ?? "POST", body: JSON.stringify(options.json) };
    options.headers = { "Content-Type": "application/json" };
  }
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    offline(true);
    throw new Complaint("The lab does not answer.", 0);
  }
  offline(false);
  if (response.status === 204) return null;
  const body = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
  if (!response.ok) throw new Complaint(sentence(body.error ?? `The server answered ${response.status}.`), response.status);
  return body;
}

export function offline(gone) {
  const banner = $("offline");
  banner.hidden = !gone;
  banner.textContent = gone ? "The lab does not answer. Is “sparring lab” still running? What you see stays here." : "";
}

/** With a capital, but for names such as eps=8, and a full stop. */
export const sentence = (text) => (/^[\w-]+[=:]/.test(text) ? text.charAt(0) : text.charAt(0).toUpperCase()) + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

export function percent(share) {
  if (share === null || share === undefined) return "–";
  const value = 100 * share;
  if (value >= 99.95 && value < 100) return ">\u00a099.9%";
  if (value > 0 && value < 0.05) return "<\u00a00.1%";
  return `${value.toFixed(1)}%`;
}

/** A size of the change, in 1/255 where eps was typed so. */
export function size(value, typed) {
  if (value === null || value === undefined) return "–";
  if (/\/\s*255$/.test(typed ?? "")) return `${+(value * 255).toPrecision(3)}/255`;
  return `${+value.toPrecision(3)}`;
}

export function complain(node, error) {
  node.hidden = !error;
  node.textContent = error ? error.message : "";
}
