// Result folders: the verdict, accuracy against eps, and the failures one by one.

import { chart } from "./chart.js";
import { $, api, el, percent, sentence, size } from "./dom.js";

const SORTS = [
  ["distance", "smallest change", false], ["confidence", "most confident error", true], ["norm", "size of the change", true],
  ["clean_confidence", "surest before", true], ["label", "true class", false], ["prediction", "seen as", false], ["attack", "attack", false], ["index", "number", false],
];
const SHOWS = [["fooled", "fooled"], ["robust", "withstood"], ["wrong", "wrong anyway"], ["all", "all"]];

export class ResultsView {
  constructor(state) {
    this.state = state;
    this.root = $("results-view");
    this.dialog = $("sample");
    this.dialog.addEventListener("click", (event) => { if (event.target === this.dialog) this.dialog.close(); });
    this.dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.step(-1);
      if (event.key === "ArrowRight") this.step(1);
    });
  }

  async show(name) {
    if (!this.state.runs.length) {
      this.root.replaceChildren(el("div", { class: "empty" }, el("h1", {}, "No results yet"),
        el("p", {}, "Start the lab with the folders that ", el("code", {}, "sparring evaluate"), " has written:"), el("pre", {}, "sparring lab --runs sparring-evaluate")));
      return;
    }
    const chosen = this.state.runs.find((run) => run.name === name) ?? this.state.runs[0];
    if (this.name === chosen.name) return;
    this.name = chosen.name;
    this.filter = { show: "fooled", label: "", into: "", sort: "distance", down: false };
    this.root.replaceChildren(this.list(), el("div", { class: "run", "aria-busy": "true" }, el("p", { class: "loading" }, "Reading the results …")));
    try {
      const run = await api(`/api/runs/${encodeURIComponent(chosen.name)}`);
      if (this.name === chosen.name) await this.open(run);
    } catch (error) {
      this.root.lastElementChild.replaceChildren(el("p", { class: "error large", role: "alert" }, error.message));
    }
  }

  list() {
    return el("nav", { class: "runs", "aria-label": "Result folders" }, ...this.state.runs.map((run) =>
      el("a", { href: `#results/${encodeURIComponent(run.name)}`, "aria-current": run.name === this.name ? "true" : undefined },
        el("strong", {}, run.name), el("span", {}, `${run.model} · ${run.data}`), el("span", { class: "numbers" }, el("b", { class: "clean" }, percent(run.clean.value)), " → ", el("b", { class: "robust" }, `≤ ${percent(run.robust.value)}`)))));
  }

  async open(run) {
    this.run = run;
    const number = (what, title, prefix) => el("div", { class: `big ${what}` }, el("h2", {}, title), el("p", { class: "figure" }, prefix, percent(run[what].value)),
      el("p", { class: "note" }, `95% interval ${percent(run[what].low)} to ${percent(run[what].high)}`));
    const warnings = run.warnings.map((one) => el("div", { class: "alert" }, el("strong", {}, one.code), el("p", {}, one.message)));
    this.gridBox = el("div", { class: "grid", id: "failures" });
    this.more = el("button", { type: "button", class: "secondary more", onclick: () => this.load(false) }, "Show more");
    this.count = el("p", { class: "note", role: "status" });
    const box = el("div", { class: "run" },
      el("h1", {}, run.verdict),
      el("p", { class: "lead" }, `${run.threat} ${run.created}.${run.finished ? "" : " Not finished."}`),
      el("div", { class: "two" }, number("clean", "Without attack", ""), number("robust", "Under attack, at most", el("span", { class: "prefix" }, "≤ "))),
      ...warnings,
      this.curve(run),
      el("section", {}, el("h2", {}, "One by one"), this.filters(run), this.count, this.gridBox, this.more));
    this.root.replaceChildren(this.list(), box);
    await this.load(true);
  }

  curve(run) {
    const curve = run.curve;
    if (curve.length < 2) return null;
    const points = curve.map((one) => [one.eps, one.value]);
    const x = { min: curve[0].eps, max: curve.at(-1).eps, format: (v) => (run.task === "text" ? `${Math.round(100 * v)}%` : size(v, run.eps_typed)) };
    if (/255$/.test(run.eps_typed ?? "")) {
      const top = x.max * 255, steps = [0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32];
      const step = steps.find((one) => top / one <= 6) ?? 64;
      x.ticks = Array.from({ length: Math.floor(top / step + 1e-6) + 1 }, (_, i) => (i * step) / 255);
    }
    const title = run.task === "text" ? "Accuracy against the share of words that are changed" : "Accuracy against the size of the change";
    const line = { points, hue: "s1", band: curve.map((one) => [one.eps, one.low, one.high]) };
    const marks = run.eps !== null && run.eps < x.max * 0.999 ? [run.eps] : [];
    const label = el("output", { class: "keys" });
    let chosen = run.eps ?? x.max;
    const draw = (at) => {
      chosen = at;
      const near = curve.reduce((best, one) => (Math.abs(one.eps - at) < Math.abs(best.eps - at) ? one : best));
      label.textContent = `${run.task === "text" ? `up to ${x.format(near.eps)} changed` : `at eps ${x.format(near.eps)}`}: at most ${percent(near.value)}`;
      holder.replaceChildren(chart({ title, lines: [line], x, y: { min: 0, max: 1, format: (v) => `${Math.round(100 * v)}%` }, at: near.eps, pick: draw, marks, width: holder.clientWidth || 600, height: 240 }));
    };
    const holder = el("div", {});
    draw(chosen);
    let width = 0;
    new ResizeObserver(() => {
      if (width === holder.clientWidth) return;
      width = holder.clientWidth;
      draw(chosen);
    }).observe(holder);
    return el("section", {}, el("figure", { class: "curve" }, el("figcaption", {}, el("strong", {}, title), label), holder));
  }

  filters(run) {
    const change = (key) => (event) => { this.filter[key] = event.target.value; this.load(true); };
    const option = (value, text, chosen) => el("option", { value, selected: value === chosen }, text);
    const classes = run.per_class.map((one) => [String(one.label), one.name]);
    const counts = SHOWS.map(([value, text]) => [value, `${text} (${run.counts[value].toLocaleString("en")})`]);
    return el("div", { class: "filters" },
      el("label", { class: "field" }, el("span", {}, "Show"), el("select", { id: "show", onchange: change("show") }, ...counts.map(([v, t]) => option(v, t, this.filter.show)))),
      el("label", { class: "field" }, el("span", {}, "True class"), el("select", { id: "label", onchange: change("label") }, option("", "every class"), ...classes.map(([v, t]) => option(v, t)))),
      el("label", { class: "field" }, el("span", {}, "Seen as"), el("select", { id: "into", onchange: change("into") }, option("", "any class"), ...classes.map(([v, t]) => option(v, t)))),
      el("label", { class: "field" }, el("span", {}, "Sort by"), el("select", { id: "sort", onchange: (event) => { this.filter.sort = event.target.value; this.filter.down = SORTS.find(([v]) => v === event.target.value)[2]; this.load(true); } },
        ...SORTS.map(([v, t]) => option(v, t, this.filter.sort)))),
      el("button", { type: "button", class: "quiet turn", title: "The other way round", onclick: () => { this.filter.down = !this.filter.down; this.load(true); } }, "⇅", el("span", { class: "unseen" }, "The other way round")));
  }

  get path() {
    return `/api/runs/${encodeURIComponent(this.name)}/samples`;
  }

  async load(anew) {
    if (anew) this.rows = [];
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const { show, label, into, sort, down } = this.filter;
    const query = new URLSearchParams({ show, sort, down, first: this.rows.length, ...(label && { label }), ...(into && { into }) });
    this.gridBox.setAttribute("aria-busy", "true");
    try {
      const page = await api(`${this.path}?${query}`);
      if (turn !== this.turn) return;
      this.rows.push(...page.rows);
      this.total = page.total;
      if (anew) this.gridBox.replaceChildren();
      this.gridBox.append(...page.rows.map((row, i) => this.tile(row, page.first + i)));
      this.count.textContent = page.total ? `${page.total.toLocaleString("en")} of ${this.run.counts.all.toLocaleString("en")}` : "None of the samples is like that.";
      this.more.hidden = this.rows.length >= page.total;
    } catch (error) {
      this.count.textContent = sentence(error.message);
    } finally {
      this.gridBox.removeAttribute("aria-busy");
    }
  }

  /** A change as the run measures it: of texts, the share of words. */
  size(value) {
    return this.run.task === "text" ? percent(value) : size(value, this.run.eps_typed);
  }

  title(row) {
    if (row.kind === "robust") return [el("span", { class: "was" }, row.label_name), " withstood"];
    return [el("span", { class: "was" }, row.label_name), el("span", { class: "arrow" }, " → "), el("span", { class: "now" }, row.seen_name ?? "another class")];
  }

  tile(row, place) {
    const small = this.run.task !== "text" && row.kind === "fooled";
    const picture = small ? el("img", { src: `${this.path}/${row.index}/adversarial.png`, alt: "", loading: "lazy", class: "thumb" }) : el("span", { class: `thumb none ${row.kind}` }, row.kind === "fooled" ? "Aa" : row.kind === "robust" ? "✓" : "✗");
    if (small) picture.addEventListener("load", () => picture.classList.toggle("pixelated", picture.naturalWidth <= 96));
    if (small) picture.addEventListener("error", () => picture.replaceWith(el("span", { class: "thumb none" }, "no picture")));
    const detail = row.kind === "fooled" ? this.size(row.distance ?? row.norm) : percent(row.clean_confidence);
    return el("button", { type: "button", class: "tile", onclick: () => this.look(place) }, picture, el("span", { class: "what" }, ...this.title(row)), el("span", { class: "note" }, `#${row.index} · ${detail}`));
  }

  async look(place) {
    this.at = place;
    const row = this.rows[place];
    if (!this.dialog.open) this.dialog.showModal();
    this.dialog.replaceChildren(el("p", { class: "loading" }, "Reading …"));
    let sample;
    try {
      sample = await api(`${this.path}/${row.index}`);
    } catch (error) {
      this.dialog.replaceChildren(el("p", { class: "error", role: "alert" }, error.message), el("button", { type: "button", onclick: () => this.dialog.close() }, "Close"));
      return;
    }
    if (this.at !== place) return;
    const figure = (which, title) => {
      const image = el("img", { src: `${this.path}/${row.index}/${which}.png`, alt: title });
      image.addEventListener("load", () => image.classList.toggle("pixelated", image.naturalWidth <= 96));
      return el("figure", {}, el("figcaption", {}, title), image);
    };
    const bars = (title, top) => top.length ? el("div", {}, el("h3", {}, title), el("ol", { class: "tops" }, ...top.map((one) => {
      const fill = el("span", { class: "fill" });
      fill.style.width = `${100 * one.probability}%`;
      return el("li", { class: one.label === sample.label ? "true" : "" }, el("span", { class: "name", title: one.name }, one.name), el("span", { class: "share" }, percent(one.probability)), el("span", { class: "track" }, fill));
    }))) : null;
    const facts = [
      ["True class", sample.label_name], ["Seen at first", `${sample.kind === "wrong" ? sample.seen_name : sample.label_name}, ${percent(sample.clean_confidence)}`], ["Fooled by", sample.attack], ["Seen as", sample.seen_name && sample.kind === "fooled" ? `${sample.seen_name}, ${percent(sample.confidence)}` : null],
      ["Size of the change", sample.kind === "fooled" ? this.size(sample.norm) : null], ["Smallest that fools", sample.kind === "fooled" && sample.distance !== null ? this.size(sample.distance) : null],
    ].filter(([, value]) => value !== null && value !== undefined && value !== "");
    const text = sample.pieces ? el("p", { class: "text" }, ...sample.pieces.map((one) => el({ removed: "del", inserted: "ins" }[one.kind] ?? "span", {}, one.kind === "gap" ? " … " : one.text, one.kind === "removed" ? " " : ""))) : null;
    this.dialog.replaceChildren(
      el("header", {}, el("h2", {}, ...this.title(sample)), el("span", { class: "note" }, `#${sample.index}, ${place + 1} of ${this.total.toLocaleString("en")}`),
        el("span", { class: "steps" }, el("button", { type: "button", class: "quiet", onclick: () => this.step(-1), disabled: place === 0, title: "The one before (←)" }, "←"),
        el("button", { type: "button", class: "quiet", onclick: () => this.step(1), disabled: place + 1 >= this.total, title: "The next (→)" }, "→"),
        el("button", { type: "button", class: "quiet", autofocus: true, onclick: () => this.dialog.close(), title: "Close (Esc)" }, "✕"))),
      ...(sample.pictured ? [el("div", { class: "pictures three" }, figure("original", "original"), figure("change", "the change, amplified"), figure("adversarial", "adversarial"))] : []),
      ...(text ? [text] : []),
      ...(!sample.pictured && !text ? [el("p", { class: "note" }, sample.kind === "fooled" ? "There is no picture of this sample." : "Result folders keep the pictures of the fooled samples only.")] : []),
      el("div", { class: "pair" }, bars("before", sample.before), bars("after", sample.after)),
      el("dl", {}, ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))));
    this.dialog.querySelector("[autofocus]").focus();
  }

  async step(by) {
    const place = this.at + by;
    if (place < 0 || place >= this.total) return;
    if (place >= this.rows.length) await this.load(false);
    if (this.rows[place]) this.look(place);
  }
}
