// The view where a network is fooled: settings on one side, what happens on the other.

import { Combobox } from "./combobox.js";
import { $, Complaint, api, complain, el, offline } from "./dom.js";
import { Run } from "./run.js";
import { Timeline } from "./timeline.js";

const HUES = ["s0", "s1", "s2", "s3"];
const MOST = 4;
const SLIDERS = {
  linf: { min: 1, max: 32, step: 1, value: (text) => 255 * number(text), text: (v) => `${v}/255` },
  l2: { min: 0.1, max: 10, step: 0.1, value: (text) => number(text), text: (v) => `${+(+v).toFixed(2)}` },
  l1: { min: 5, max: 500, step: 5, value: (text) => number(text), text: (v) => `${v}` },
};

function number(text) {
  const [over, under = "1", ...rest] = String(text).split("/");
  const value = over.trim() === "" || rest.length ? NaN : Number(over) / Number(under);
  return Number.isFinite(value) ? value : NaN;
}

/** A size of a sweep as eps is typed: 5/255, or a decimal. */
function exact(eps, typed) {
  const level = eps * 255;
  return /255$/.test(typed) && Math.abs(level - Math.round(level)) < 1e-4 ? `${Math.round(level)}/255` : `${+eps.toPrecision(6)}`;
}

export class AttackView {
  constructor(state) {
    this.state = state;
    this.client = Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");
    this.runs = [];
    this.picture = null;
    this.timeline = new Timeline();
    this.target = new Combobox($("target"), $("target-list"), () => {});
    this.fill();
    this.listen();
    this.adapt();
    this.choices();
    this.samples();
  }

  get network() {
    return this.state.networks.find((one) => one.name === $("network").value);
  }

  get compare() {
    return document.querySelector("input[name=compare]:checked").value;
  }

  get method() {
    return this.state.attacks.find((one) => one.name === $("method").value);
  }

  names(network) {
    return this.state.classes[network.classes];
  }

  fill() {
    $("network").append(...this.state.networks.map((one) => el("option", { value: one.name }, one.name)));
    const kinds = { gradients: "from gradients", scores: "from scores alone", decisions: "from decisions alone" };
    for (const [access, label] of Object.entries(kinds)) {
      const group = this.state.attacks.filter((one) => one.access === access).map((one) => el("option", { value: one.name }, one.title));
      if (group.length) $("method").append(el("optgroup", { label }, ...group));
    }
    $("optimizer").append(...Object.keys(this.state.rates).map((name) => el("option", { value: name }, name)));
    $("steps").max = this.state.max_steps;
    Object.assign($("queries"), { max: this.state.max_queries, value: this.state.queries });
    if (this.state.networks.length) this.target.setNames(this.names(this.network));
    else {
      complain($("attack-error"), new Complaint("There is no network on this server: start it with --model, or look at its results."));
      $("start").disabled = true;
    }
  }

  listen() {
    $("setup").addEventListener("submit", (event) => { event.preventDefault(); this.start(); });
    $("stop").addEventListener("click", () => this.stop());
    $("network").addEventListener("change", () => {
      this.target.setNames(this.names(this.network));
      this.samples();
      this.choices();
    });
    $("method").addEventListener("change", () => this.adapt());
    $("optimizer").addEventListener("change", () => this.adapt());
    $("norm").addEventListener("change", () => {
      if ($("norm").value !== "none") $("eps").value = this.state.eps[$("norm").value];
      this.adapt();
    });
    $("eps").addEventListener("input", () => this.slide());
    $("eps-slider").addEventListener("input", () => { $("eps").value = SLIDERS[$("norm").value].text($("eps-slider").value); });
    for (const one of document.querySelectorAll("input[name=compare]")) one.addEventListener("change", () => { this.choices(); this.adapt(); });
    $("choose").addEventListener("click", () => $("file").click());
    $("file").addEventListener("change", () => { if ($("file").files[0]) this.upload($("file").files[0]); $("file").value = ""; });
    addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
    addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
    addEventListener("drop", (event) => {
      event.preventDefault();
      $("drop").classList.remove("over");
      if (event.dataTransfer.files[0]) this.upload(event.dataTransfer.files[0]);
    });
    addEventListener("paste", (event) => { if (event.clipboardData?.files[0]) this.upload(event.clipboardData.files[0]); });
    addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    if ($("attack-view").hidden || $("sample").open) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      $("setup").requestSubmit();
    } else if (event.key === "Escape" && !$("stop").hidden) this.stop();
    else if (!event.target.closest("input, select, textarea, [role=listbox], code") && this.timeline.key(event)) event.preventDefault();
  }

  /** Only the fields that the method has. */
  adapt() {
    const { steps, queries, optimizer } = this.method;
    const compared = this.compare === "optimizers";
    $("optimizer-fields").hidden = !optimizer && !compared;
    $("optimizer-field").hidden = compared;
    $("steps-field").hidden = !steps && !compared;
    $("queries-field").hidden = !queries || compared;
    $("method").closest("label").hidden = compared;
    const none = $("norm").querySelector("option[value=none]");
    none.hidden = none.disabled = !(optimizer || compared) || this.compare === "sweep";
    if (none.disabled && $("norm").value === "none") { $("norm").value = "linf"; $("eps").value = this.state.eps.linf; }
    $("eps-field").hidden = $("norm").value === "none";
    const usual = this.state.rates[$("optimizer").value];
    $("lr").placeholder = compared ? "each its usual one" : `${usual}`;
    this.slide();
  }

  slide() {
    const slider = SLIDERS[$("norm").value];
    $("eps-slider").hidden = !slider;
    if (!slider) return;
    Object.assign($("eps-slider"), { min: slider.min, max: slider.max, step: slider.step });
    const value = slider.value($("eps").value);
    if (Number.isFinite(value)) $("eps-slider").value = value;
    $("eps-slider").setAttribute("aria-valuetext", $("eps").value);
  }

  choices() {
    const notes = {
      one: "", optimizers: "Up to four, side by side on the same picture.", networks: "The same attack on each, made for it alone.",
      sweep: "Twelve sizes, up to twice eps: drag through them and see where the verdict flips.",
    };
    $("compare-note").textContent = notes[this.compare];
    const box = $("choices");
    const offered = this.compare === "optimizers" ? Object.keys(this.state.rates) : this.compare === "networks" ? this.state.networks.map((one) => one.name) : [];
    const first = this.compare === "optimizers" ? ["SGD", "Adam", "RMSprop"] : this.alike().slice(0, 2);
    box.hidden = !offered.length;
    box.className = `choices ${this.compare}`;
    box.replaceChildren(...offered.map((name) => el("label", {}, el("input", { type: "checkbox", value: name, checked: first.includes(name), onchange: () => this.limitChoices() }), el("span", {}, name))));
    if (this.compare === "networks" && offered.length < 2) $("compare-note").textContent = "There is one network on this server; --models adds more.";
    this.limitChoices();
  }

  /** The networks, the chosen one first, then those with the same classes. */
  alike() {
    const far = (one) => (one === this.network ? 0 : one.classes === this.network.classes ? 1 : 2);
    return [...this.state.networks].sort((a, b) => far(a) - far(b)).map((one) => one.name);
  }

  get chosen() {
    return [...$("choices").querySelectorAll("input:checked")].map((box) => box.value);
  }

  limitChoices() {
    const full = this.chosen.length >= MOST;
    for (const box of $("choices").querySelectorAll("input")) box.disabled = full && !box.checked;
  }

  samples() {
    if (!this.network) return;
    const small = Math.max(...this.network.shape.slice(1)) < 64;
    const fitting = this.state.samples.filter((one) => (one.side < 64) === small);
    const shown = fitting.length ? fitting : this.state.samples;
    $("samples").replaceChildren(...shown.map((one) => {
      const image = el("img", { src: `/api/pictures/${one.token}/thumbnail.png`, alt: one.label || one.name, loading: "lazy", class: one.side < 64 ? "pixelated" : "" });
      return el("button", { type: "button", role: "radio", "aria-checked": "false", title: one.label || one.name, data: { token: one.token }, onclick: () => this.choose(one) }, image);
    }));
    $("samples").hidden = !shown.length;
    const mine = this.picture && !this.picture.sample;
    if (mine) this.choose(this.picture);
    else if (shown.length) this.choose(shown.find((one) => one.token === this.picture?.token) ?? shown[0]);
    else this.choose(null);
  }

  async choose(picture) {
    this.picture = picture && { ...picture, sample: picture.sample ?? this.state.samples.some((one) => one.token === picture.token) };
    for (const button of $("samples").children) button.setAttribute("aria-checked", String(button.dataset.token === picture?.token));
    $("choose").replaceChildren(...(picture && !this.picture.sample ? [el("strong", { title: picture.name }, picture.name), el("span", {}, "Choose another, or drop one here")] : [el("strong", {}, "Choose a picture"), " or drop one here"]));
    complain($("picture-error"), null);
    await this.look();
  }

  async upload(file) {
    complain($("picture-error"), null);
    if (file.size > this.state.max_bytes) {
      complain($("picture-error"), new Complaint(`${file.name} has more than ${this.state.max_bytes >> 20} MB: save it smaller and try again.`));
      return;
    }
    $("drop").classList.add("busy");
    try {
      const kept = await api("/api/pictures", { method: "POST", body: file, headers: { "Content-Type": file.type || "application/octet-stream", "X-Name": encodeURIComponent(file.name.slice(-80)) } });
      await this.choose({ ...kept, sample: false });
    } catch (error) {
      complain($("picture-error"), error);
    } finally {
      $("drop").classList.remove("busy");
    }
  }

  /** What the network sees in the picture, before anything is done to it. */
  async look() {
    this.halt();
    complain($("attack-error"), null);
    if (!this.picture || !this.network) return;
    const run = new Run({ title: this.network.name, network: this.network, names: this.names(this.network), hue: "s0", eps: "", norm: "linf" });
    this.lay([run]);
    try {
      const seen = await api("/api/looks", { json: { network: this.network.name, picture: this.picture.token } });
      if (this.runs[0] === run) await run.look(seen);
    } catch (error) {
      if (this.runs[0] !== run) return;
      this.lay([]);
      complain($("picture-error"), error);
    }
  }

  lay(runs) {
    this.runs = runs;
    this.timeline.lay(runs);
    $("cards").className = `cards n${runs.length}`;
    $("cards").replaceChildren(...runs.map((run) => run.card));
  }

  /** The orders that the form means, with what to call each. */
  orders() {
    const lr = $("lr").value.trim();
    if (lr && !(number(lr) > 0)) throw new Complaint(`Learning rate ${lr}: a number above 0, such as 0.01.`);
    const whole = (field, most, title) => {
      const value = Math.round(+$(field).value);
      if (!(value >= 1 && value <= most)) throw new Complaint(`${title}: a whole number from 1 to ${most}.`);
      return value;
    };
    const steps = whole("steps", this.state.max_steps, "Steps"), queries = whole("queries", this.state.max_queries, "Queries");
    if (!(number($("eps").value) > 0) && $("norm").value !== "none") throw new Complaint(`eps ${$("eps").value}: a number above 0, such as 8/255.`);
    const common = {
      network: this.network.name, picture: this.picture.token, attack: this.method.name, norm: $("norm").value, eps: $("eps").value.trim(), steps, queries,
      target: this.target.value, optimizer: $("optimizer").value, seed: Math.max(0, Math.round(+$("seed").value) || 0), client: this.client,
    };
    if (lr) common.lr = number(lr);
    if (this.compare === "optimizers") {
      if (!this.chosen.length) throw new Complaint("Tick at least one optimiser.");
      return this.chosen.map((optimizer) => ({ title: `${optimizer}, rate ${lr || this.state.rates[optimizer]}`, order: { ...common, attack: "optimizer", optimizer } }));
    }
    if (this.compare === "networks") {
      if (!this.chosen.length) throw new Complaint("Tick at least one network.");
      return this.chosen.map((network) => ({ title: network, order: { ...common, network, target: this.sameTarget(network) } }));
    }
    const title = this.method.name === "optimizer" ? common.optimizer : this.method.title.split(":")[0];
    if (this.compare === "sweep") return [{ title: `${title} at twelve sizes`, order: { ...common, sweep: true } }];
    return [{ title: `${title} on ${common.network}`, order: common }];
  }

  /** The class of the same name on another network. */
  sameTarget(name) {
    if (this.target.value === null) return null;
    const wanted = this.names(this.network)[this.target.value];
    const names = this.names(this.state.networks.find((one) => one.name === name));
    const found = names.indexOf(wanted);
    if (found < 0) throw new Complaint(`${name} has no class “${wanted}”: clear the goal to compare, or untick it.`);
    return found;
  }

  async start() {
    this.target.settle();
    complain($("attack-error"), null);
    complain($("picture-error"), null);
    if (!this.picture) return complain($("picture-error"), new Complaint("Choose a picture first."));
    let orders;
    try {
      orders = this.orders();
    } catch (error) {
      return complain($("attack-error"), error);
    }
    this.halt();
    const before = this.runs;
    this.lay(orders.map(({ title, order }, i) => {
      const network = this.state.networks.find((one) => one.name === order.network);
      const sample = this.picture.sample ? `/api/pictures/${this.picture.token}/file` : null;
      const takeSize = (eps) => { $("eps").value = exact(eps, order.eps); this.slide(); document.querySelector("input[value=one]").click(); this.start(); };
      const { nearest } = this.state.attacks.find((one) => one.name === order.attack);
      return new Run({ title, network, names: this.names(network), hue: HUES[i], nearest, eps: order.eps, norm: order.norm, target: order.target, sweep: !!order.sweep, sample, takeSize });
    }));
    const runs = this.runs;
    for (const run of runs) run.tell();
    this.busy(true);
    if (matchMedia("(max-width: 56rem)").matches) $("cards").scrollIntoView({ behavior: "smooth", block: "start" });
    try {
      for (const [i, { order }] of orders.entries()) {
        const made = await api("/api/jobs", { json: order });
        Object.assign(runs[i], { job: made.job, ahead: made.ahead, command: made.command });
        runs[i].tell();
      }
    } catch (error) {
      this.halt();
      await this.stop();
      this.lay(before.filter((run) => run.over)); // what was to be seen before it was refused
      this.timeline.refresh();
      return complain($("attack-error"), error);
    }
    if (this.runs === runs) this.follow(runs);
  }

  follow(runs) {
    const events = (this.events = new EventSource(`/api/events?${runs.map((run) => `job=${run.job}`).join("&")}`));
    for (const kind of ["begin", "frame", "done", "ended", "failed"]) {
      events.addEventListener(kind, (event) => {
        offline(false);
        const document = JSON.parse(event.data);
        runs.find((run) => run.job === document.job)?.take(kind, document);
        this.timeline.refresh();
        if (runs.every((run) => run.over)) this.finished(events);
      });
    }
    events.addEventListener("open", () => offline(false));
    events.addEventListener("error", () => {
      if (events.readyState === EventSource.CONNECTING) return offline(true);
      offline(false);
      for (const run of runs) if (!run.over) run.take("failed", { reason: "The server knows nothing of this attack any more: start it again." });
      this.finished(events);
    });
  }

  finished(events) {
    events.close();
    if (this.events !== events) return;
    this.events = null;
    this.busy(false);
    const told = this.runs.map((run) => `${run.title}: ${run.chip.textContent}. ${run.verdict.textContent}`);
    $("status").textContent = told.join(" ");
    this.timeline.refresh();
  }

  busy(yes) {
    $("stop").hidden = !yes;
    $("start").textContent = yes ? "Start again" : "Attack";
  }

  /** End what runs, and tell the server. */
  halt() {
    this.timeline.pause();
    if (!this.events) return this.busy(false);
    this.events.close();
    this.events = null;
    this.stop();
    this.busy(false);
  }

  async stop() {
    for (const run of this.runs) {
      if (run.job === null || run.over) continue;
      try {
        await api(`/api/jobs/${run.job}`, { method: "DELETE" });
      } catch (error) {
        if (error.status) complain($("attack-error"), error);
      }
    }
  }
}
