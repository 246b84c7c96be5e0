// A text field that searches a long list of names, by keyboard or pointer.

import { el } from "./dom.js";

const SHOWN = 60;

/** Where each word of what was typed begins a word of the name first, then where it occurs at all. */
export function search(names, typed) {
  const words = typed.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return names.map((_, i) => i);
  const begins = [], within = [];
  names.forEach((name, i) => {
    const low = name.toLowerCase();
    if (!words.every((word) => low.includes(word)) && typed.trim() !== String(i)) return;
    (words.every((word) => low.split(/[\s,'-]+/).some((part) => part.startsWith(word))) ? begins : within).push(i);
  });
  const length = (i) => names[i].length;
  return [...begins.sort((a, b) => length(a) - length(b)), ...within];
}

export class Combobox {
  constructor(input, list, changed) {
    Object.assign(this, { input, list, changed, names: [], value: null, active: -1, found: [] });
    input.addEventListener("input", () => this.open());
    input.addEventListener("focus", () => input.select());
    input.addEventListener("click", () => this.open(true));
    input.addEventListener("blur", () => setTimeout(() => this.settle(), 120));
    input.addEventListener("keydown", (event) => this.key(event));
  }

  setNames(names) {
    const kept = this.value === null ? null : this.names[this.value];
    this.names = names;
    const again = kept === null ? -1 : names.indexOf(kept);
    this.set(again < 0 ? null : again);
  }

  set(value) {
    this.value = value;
    this.input.value = value === null ? "" : this.names[value];
    this.input.title = this.input.value;
    this.close();
    this.changed(value);
  }

  open(all = false) {
    const typed = all && this.value !== null ? "" : this.input.value;
    this.found = search(this.names, typed).slice(0, SHOWN);
    const any = typed.trim() === "" ? [null] : [];
    this.found = [...any, ...this.found];
    this.list.replaceChildren(
      ...this.found.map((value, place) =>
        el("li", {
          id: `option-${place}`, role: "option", "aria-selected": String(value === this.value),
          class: value === null ? "any" : "",
          onpointerdown: (event) => { event.preventDefault(); this.set(value); },
        }, value === null ? "any wrong class" : this.names[value])),
    );
    if (!this.found.length) this.list.append(el("li", { class: "none", role: "option", "aria-disabled": "true" }, "No class of that name"));
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    this.mark(typed.trim() === "" ? -1 : 0);
  }

  close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }

  mark(place) {
    this.active = Math.max(-1, Math.min(place, this.found.length - 1));
    [...this.list.children].forEach((item, i) => item.classList.toggle("active", i === this.active));
    const item = this.list.children[this.active];
    if (this.active >= 0 && item) {
      this.input.setAttribute("aria-activedescendant", item.id);
      item.scrollIntoView({ block: "nearest" });
    } else this.input.removeAttribute("aria-activedescendant");
  }

  /** What was typed counts if it is a class's name, or says nothing; else the last choice comes back. */
  settle() {
    if (this.list.hidden) return;
    const typed = this.input.value.trim().toLowerCase();
    const exact = this.names.findIndex((name) => name.toLowerCase() === typed);
    this.set(typed === "" ? null : exact >= 0 ? exact : this.value);
  }

  key(event) {
    const closed = this.list.hidden;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (closed) this.open(true);
      else this.mark(this.active + (event.key === "ArrowDown" ? 1 : -1));
    } else if (event.key === "Enter" && !closed && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      if (this.active >= 0 && this.found.length) this.set(this.found[this.active]);
      else this.settle();
    } else if (event.key === "Escape" && !closed) {
      event.stopPropagation();
      this.set(this.value);
    } else if (event.key === "Tab" && !closed) {
      if (this.active > 0 || (this.active === 0 && this.input.value.trim())) this.set(this.found[this.active]);
      else this.settle();
    }
  }
}
