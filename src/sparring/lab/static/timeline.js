// Through the steps of attacks: the slider, the keys, the charts, and what each card shows.

import { chart, range, ticks } from "./chart.js";
import { $, el, percent, size } from "./dom.js";

export class Timeline {
  constructor() {
    this.lay([]);
    $("scrub").addEventListener("input", () => this.go(+$("scrub").value));
    $("play").addEventListener("click", () => this.play());
    new ResizeObserver(() => { if (this.width !== $("charts").clientWidth) this.refresh(); }).observe($("charts"));
  }

  /** Begin with these attacks. */
  lay(runs) {
    this.pause();
    this.runs = runs;
    this.place = 0;
    this.following = true;
    $("timeline").hidden = true;
    $("flip").hidden = true;
  }

  pause() {
    clearInterval(this.playing);
    this.playing = null;
    $("play").setAttribute("aria-label", "Play");
    $("play").firstElementChild.textContent = "▶";
  }

  /** Whether the key was one of its own. */
  key(event) {
    if ($("timeline").hidden) return false;
    const places = { ArrowLeft: this.place - 1, ArrowRight: this.place + 1, Home: 0, End: this.length - 1 };
    if (event.key in places) this.go(places[event.key]);
    else if (event.key === " " && event.target === document.body) this.play();
    else return false;
    return true;
  }

  get length() {
    return Math.max(0, ...this.runs.map((run) => run.frames.length));
  }

  /** After an event: at most one drawing in each frame of the screen. */
  refresh() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      const length = this.length;
      $("timeline").hidden = length === 0;
      if (!length) return;
      this.draw(this.following ? length - 1 : Math.min(this.place, length - 1));
    });
  }

  go(place) {
    const last = this.length - 1;
    this.following = place >= last;
    this.draw(Math.max(0, Math.min(place, last)));
  }

  play() {
    if (this.playing) return this.pause();
    if (this.place >= this.length - 1) this.go(0);
    this.playing = setInterval(() => { if (this.place >= this.length - 1) this.pause(); else this.go(this.place + 1); }, 180);
    $("play").setAttribute("aria-label", "Pause");
    $("play").firstElementChild.textContent = "❚❚";
  }

  draw(place) {
    this.place = place;
    const first = this.runs.reduce((a, b) => (b.frames.length > a.frames.length ? b : a));
    const frame = first.frames[place];
    const sweep = first.begin.axis === "eps";
    Object.assign($("scrub"), { max: this.length - 1, value: place });
    const label = sweep ? `eps ${size(frame.at, first.eps)}` : frame.result ? "result" : `${first.begin.axis} ${frame.at} of ${first.begin.end}`;
    $("scrub-label").textContent = label;
    $("scrub").setAttribute("aria-valuetext", label);
    for (const run of this.runs) run.show(place);
    this.charts(frame.at, sweep);
  }

  charts(at, sweep) {
    this.width = $("charts").clientWidth;
    const runs = this.runs.filter((run) => run.frames.length);
    const several = runs.length > 1;
    const where = sweep ? Math.log2 : (v) => v; // sizes are a constant ratio apart
    const end = Math.max(...runs.map((run) => run.begin.end));
    const x = sweep
      ? { min: where(end) - 5.5, max: where(end), ticks: [5, 4, 3, 2, 1, 0].map((i) => where(end) - i), format: (v) => size(2 ** v, runs[0].eps) }
      : { min: 0, max: end, ticks: ticks(0, end, this.width > 500 ? 6 : 4).filter(Number.isInteger) };
    const pick = (v) => {
      const frames = runs[0].frames.filter((one) => !one.result);
      const away = (one) => Math.abs(where(one.at) - v);
      this.go(frames.reduce((best, one, i) => (away(one) < away(frames[best]) ? i : best), 0));
    };
    const points = (run, value) => run.frames.filter((one) => !one.result).map((one) => [where(one.at), value(one)]);
    const nearest = runs[0].nearest; // what such an attack looks for is small, not a high loss
    const unit = /255$/.test(runs[0].eps) ? 255 : 1; // so that the ticks are round numbers of what eps was typed in
    const progress = runs.map((run) => ({ points: points(run, (one) => (!nearest ? one.objective : one.fooled ? one.norm * unit : null)), hue: run.hue }));
    const goal = runs.some((run) => run.begin.target !== null);
    const shares = runs.flatMap((run) => [
      ...(goal ? [{ points: points(run, (one) => one.followed[1]), hue: several ? run.hue : "s1" }] : []),
      ...(!goal || !several ? [{ points: points(run, (one) => one.followed[0]), hue: several ? run.hue : "s0", dashed: goal }] : []),
    ]);
    const flips = sweep ? runs[0].frames.filter((one) => one.fooled).map((one) => one.at) : [];
    const marks = flips.length ? [Math.min(...flips)] : [];
    const held = runs[0].frames.map((one) => one.at).filter((one) => one < marks[0]);
    if (sweep) {
      $("flip").hidden = runs[0].state !== "done";
      $("flip").textContent = marks.length
        ? `The verdict flips ${held.length ? `between eps ${size(Math.max(...held), runs[0].eps)} and` : "below"} ${size(marks[0], runs[0].eps)}. Each size is shown as it first succeeded.`
        : "At none of these sizes does this attack succeed.";
    }
    if (!this.width) return; // another view is shown; it is drawn when this one comes back
    const columns = !sweep && this.width > 760 ? 2 : 1;
    const shape = { width: Math.floor(Math.min(1040, (this.width - 1 - 32 * (columns - 1)) / columns)), height: columns * this.width > 900 ? 230 : 190 };
    const name = (run, label) => run.name(label);
    const keys = several
      ? runs.map((run) => [run.hue, run.title, false])
      : [...(goal ? [["s1", name(runs[0], runs[0].begin.target), false]] : []), ["s0", name(runs[0], runs[0].begin.label), goal]];
    const whose = several ? (goal ? `of ${name(runs[0], runs[0].begin.target)}` : "of what it saw at first") : "";
    const block = (title, more, drawn) => {
      const figure = el("figure", {}, el("figcaption", {}, el("strong", {}, title), more), drawn);
      figure.style.width = `${shape.width}px`;
      return figure;
    };
    const values = progress.flatMap((line) => line.points.map(([, v]) => v));
    const legend = el("span", { class: "keys" }, ...keys.map(([hue, text, dashed]) => el("span", { title: text }, el("i", { class: `${hue}${dashed ? " dashed" : ""}` }), text)));
    $("charts").replaceChildren(
      block(`Probability ${whose}`, legend, chart({ title: "Probabilities by step", lines: shares, x, y: { min: 0, max: 1, format: (v) => percent(v).replace(".0", "") }, at: where(at), pick, marks: marks.map(where), ...shape })),
      ...(sweep ? [] : [block(nearest ? "Size of the change" : "Loss", el("span", { class: "keys" }, nearest ? "where it fools" : several ? "" : "what the attack climbs"), chart({ title: nearest ? "Size of the change by step" : "Loss by step", lines: progress, x, y: nearest ? { ...range(values), format: (v) => size(v / unit, runs[0].eps) } : range(values), at, pick, ...shape }))]),
    );
  }
}
