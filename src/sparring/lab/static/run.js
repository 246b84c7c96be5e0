// One attack on the page: its frames as they come, and the card that shows one of them.

import { el, percent, sentence, size } from "./dom.js";

const LEVELS = 15;

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Pixels (H, W, 1 or 3) on a canvas of that size. */
function paint(canvas, { width, height, channels }, value) {
  canvas.width = width;
  canvas.height = height;
  canvas.classList.toggle("pixelated", Math.max(width, height) <= 96);
  const image = new ImageData(width, height);
  for (let i = 0, n = width * height; i < n; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = value(i * channels + (channels === 3 ? c : 0));
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

export class Run {
  /** what: {title, network, names, hue, eps, sweep}; names: of the network's classes. */
  constructor(what) {
    Object.assign(this, what);
    Object.assign(this, { frames: [], begin: null, done: null, state: "waiting", reason: "", job: null, command: "", shown: 0, drawing: 0 });
    this.build();
  }

  name(label) {
    return this.names[label] ?? `class ${label}`;
  }

  /** The picture as the network takes it, before any attack. */
  async look(seen) {
    this.state = "look";
    this.begin = { picture: seen.picture, label: seen.top[0][0], target: null };
    this.pixels = await unpacked(seen.picture.data);
    paint(this.canvas, seen.picture, (i) => this.pixels[i]);
    this.bars(seen.top);
    this.tell();
  }

  take(kind, event) {
    if (kind === "begin") {
      this.begin = event;
      this.state = "running";
      this.ready = unpacked(event.picture.data).then((pixels) => {
        this.pixels = pixels;
        if (!this.frames.length) paint(this.canvas, event.picture, (i) => pixels[i]);
      });
      if (!this.frames.length) this.bars(event.before.top);
    } else if (kind === "frame") {
      this.frames.push(event);
      if (this.begin.axis === "eps") this.frames.sort((a, b) => a.at - b.at);
    } else if (kind === "done") {
      this.done = event;
      this.state = "done";
      if (event.answer) this.frames.push({ ...event.answer, result: true, at: this.frames.at(-1).at, fooled: event.answer.success, change: event.change });
    } else {
      this.state = kind;
      this.reason = event.reason;
    }
    this.tell();
  }

  get over() {
    return !["waiting", "running"].includes(this.state);
  }

  get current() {
    return this.frames[Math.min(this.shown, this.frames.length - 1)];
  }

  build() {
    this.canvas = el("canvas", { role: "img", width: 224, height: 224 });
    this.change = el("canvas", { role: "img", width: 224, height: 224 });
    this.changeTitle = el("figcaption", {}, "the change");
    this.pictureTitle = el("figcaption", {}, "what it is shown");
    this.chip = el("span", { class: "chip" });
    this.verdict = el("p", { class: "verdict" });
    this.list = el("ol", { class: "tops" });
    this.foot = el("div", { class: "foot" });
    this.changeFigure = el("figure", {}, this.changeTitle, this.change);
    this.card = el(
      "article", { class: `card ${this.hue}` },
      el("header", {}, el("h2", {}, this.title), this.chip),
      el("div", { class: "body" },
        el("div", { class: "pictures" }, el("figure", {}, this.pictureTitle, this.canvas), this.changeFigure),
        el("div", { class: "said" }, this.verdict, this.list, this.foot)),
    );
  }

  bars(top) {
    const rows = top.map(([label, share]) => {
      const fill = el("span", { class: "fill" });
      fill.style.width = `${100 * (share ?? 0)}%`;
      const kind = label === this.begin.label ? "true" : label === this.begin.target ? "goal" : "";
      return el("li", { class: kind },
        el("span", { class: "name", title: this.name(label) }, this.name(label)),
        el("span", { class: "share" }, percent(share)),
        el("span", { class: "track" }, fill));
    });
    this.list.replaceChildren(...rows);
  }

  /** Show the frame of this place; the last of several calls counts. */
  async show(place) {
    this.shown = place;
    const frame = this.current;
    if (!frame) return;
    const turn = ++this.drawing;
    await this.ready;
    const steps = frame.steps ?? (frame.steps = new Int8Array((await unpacked(frame.change.data)).buffer));
    if (turn !== this.drawing) return;
    const { scale } = frame.change, shape = this.begin.picture;
    const step = (scale / LEVELS) * 255;
    paint(this.canvas, shape, (i) => this.pixels[i] + steps[i] * step);
    paint(this.change, shape, (i) => 127.5 + (steps[i] / LEVELS) * 127.5);
    this.changeTitle.textContent = scale > 0 ? `the change, × ${+(0.5 / scale).toPrecision(2)}` : "no change yet";
    this.bars(frame.top);
    this.tell();
  }

  tell() {
    const frame = this.current;
    const words = {
      look: "", waiting: this.ahead ? `${this.ahead} before it` : "waiting", running: "running", ended: "stopped", failed: "failed",
      done: this.begin?.axis === "eps" ? "done" : this.done?.answer?.success ? "fooled" : "held",
    };
    this.chip.textContent = words[this.state] ?? "";
    this.chip.className = `chip ${this.state === "done" ? words.done : this.state}`;
    this.card.classList.toggle("busy", this.state === "waiting" || (this.state === "running" && !this.frames.length));
    this.card.classList.toggle("plain", this.state === "look" || (!this.frames.length && this.over));
    if (this.begin) {
      const [label, share] = (frame ?? this.begin.before ?? { top: [[this.begin.label, null]] }).top[0];
      const was = el("span", { class: "was" }, this.name(this.begin.label));
      const sees = el("span", { class: label === this.begin.label ? "was" : "now" }, this.name(label));
      if (this.state === "look") this.verdict.replaceChildren("The network sees ", was);
      else if (label === this.begin.label) this.verdict.replaceChildren("Still sees ", sees, ` ${percent(share)}`);
      else this.verdict.replaceChildren(was, el("span", { class: "arrow", "aria-label": "became" }, " → "), sees, ` ${percent(share)}`);
      this.canvas.setAttribute("aria-label", `The picture; the network sees ${this.name(label)}`);
      this.change.setAttribute("aria-label", "The change, amplified");
    }
    this.footer(frame);
  }

  footer(frame) {
    const parts = [];
    if (this.state === "failed" || (this.state === "ended" && this.reason !== "stopped")) parts.push(el("p", { class: this.state === "failed" ? "error" : "note" }, sentence(this.reason)));
    if (this.state === "look") parts.push(el("p", { class: "note" }, "Say what it is to see, or leave that open, and press Attack."));
    const answer = frame?.answer ?? (this.done ? this.done.answer : null);
    if (answer && this.over) {
      const [label, share] = answer.top_8bit[0];
      const goal = this.begin.target === null ? "" : this.name(this.begin.target);
      const text = answer.success && answer.success_8bit
        ? `Saved as 8-bit PNG it still fools: ${this.name(label)}, ${percent(share)}.`
        : answer.success
          ? `Saved as 8-bit PNG it no longer fools: rounding leaves ${this.name(label)}, ${percent(share)}.`
          : answer.fools
            ? `Fooled by a larger change than eps ${this.eps} only.`
            : `Not fooled${goal ? ` into ${goal}` : ""} by this attack: more ${this.begin.axis === "query" ? "queries" : "steps"}, or a larger eps?`;
      parts.push(el("p", { class: `saved ${answer.success && answer.success_8bit ? "yes" : "no"}` }, text));
      const measured = { linf: "Largest change of a value", l2: "Length of the change (L2)", l1: "Sum of the changes (L1)", none: "Length of the change (L2)" };
      const typed = this.norm === "none" ? "" : this.eps;
      const passes = frame?.answer ? "" : ` ${this.done.forwards.toLocaleString("en")} forward and ${this.done.backwards} backward passes.`;
      const saved = size(answer.norm_8bit, typed), found = size(answer.norm, typed);
      parts.push(el("p", { class: "note" }, `${measured[this.norm]}: ${found}${saved === found ? "" : `, saved ${saved}`}.${passes}`));
      const at = frame?.answer ? `?at=${frame.at}` : "";
      const actions = el("p", { class: "actions" },
        el("a", { class: "button", href: `/api/jobs/${this.job}/adversarial.png${at}`, download: "" }, "Download the 8-bit PNG"));
      parts.push(actions);
      if (frame?.answer && this.takeSize) actions.append(el("button", { type: "button", onclick: () => this.takeSize(frame.at) }, "Attack at this size"));
    }
    if (this.command && this.over && !this.sweep) parts.push(this.commandLine());
    const signature = parts.map((part) => part.textContent).join("|") + (frame?.answer ? frame.at : "");
    if (signature === this.signature) return; // what stands there may have the focus
    this.signature = signature;
    this.foot.replaceChildren(...parts);
  }

  commandLine() {
    const code = el("code", { tabIndex: 0 }, this.command);
    const copy = el("button", {
      type: "button",
      onclick: async () => {
        try {
          await navigator.clipboard.writeText(this.command);
          copy.textContent = "Copied";
        } catch {
          getSelection().selectAllChildren(code);
          copy.textContent = "Press Ctrl C";
        }
        setTimeout(() => { copy.textContent = "Copy"; }, 1800);
      },
    }, "Copy");
    const file = this.sample ? el("p", { class: "note" }, "It wants the picture beside it: ", el("a", { href: this.sample, download: "" }, "save it"), ".") : null;
    return el("details", { class: "command" }, el("summary", {}, "The same from the command line"), el("div", {}, code, copy), file);
  }
}
