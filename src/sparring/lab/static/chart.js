// Line charts as SVG, drawn anew at every change; colours come from the style sheet.

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Round numbers from low to high, about so many. */
export function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  if (!(raw > 0) || !Number.isFinite(raw)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999) ?? 10 * power;
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(+value.toPrecision(12));
  return found;
}

/**
 * lines: [{points: [[x, y]], hue, dashed, band: [[x, low, high]]}]. x, y: {min, max, label, format}. at: where the marker stands.
 * width, height: in pixels of the page, so that the text has the page's size. pick(x): called where a person points.
 */
export function chart({ title, lines, x, y, at = null, pick = null, height = 190, width = 460, marks = [] }) {
  const left = 46, right = 10, top = 10, bottom = 30;
  const across = (v) => left + ((v - x.min) / (x.max - x.min || 1)) * (width - left - right);
  const up = (v) => height - bottom - ((v - y.min) / (y.max - y.min || 1)) * (height - bottom - top);
  const label = y.format ?? ((v) => `${+v.toPrecision(3)}`);
  const below = x.format ?? ((v) => `${+v.toPrecision(3)}`);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, class: "chart", role: "img", "aria-label": title });
  for (const value of ticks(y.min, y.max, 4)) {
    root.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: up(value), y2: up(value) }));
    root.append(svg("text", { class: "tick", x: left - 7, y: up(value) + 4, "text-anchor": "end" }, label(value)));
  }
  for (const value of x.ticks ?? ticks(x.min, x.max, width > 400 ? 6 : 4)) {
    root.append(svg("text", { class: "tick", x: across(value), y: height - 10, "text-anchor": "middle" }, below(value)));
  }
  for (const value of marks) {
    root.append(svg("line", { class: "mark", x1: across(value), x2: across(value), y1: top, y2: height - bottom }));
  }
  if (at !== null) root.append(svg("line", { class: "at", x1: across(at), x2: across(at), y1: top, y2: height - bottom }));
  for (const line of lines) {
    if (line.band?.length) {
      const edge = [...line.band.map(([a, , h]) => [a, h]), ...line.band.map(([a, l]) => [a, l]).reverse()];
      root.append(svg("polygon", { class: `band ${line.hue}`, points: edge.map(([a, b]) => `${across(a)},${up(b)}`).join(" ") }));
    }
    const points = line.points.filter(([, b]) => b !== null);
    const drawn = points.map(([a, b]) => `${across(a).toFixed(1)},${up(b).toFixed(1)}`).join(" ");
    root.append(svg("polyline", { class: `line ${line.hue}${line.dashed ? " dashed" : ""}`, points: drawn }));
    const here = at === null ? null : points.find(([a]) => a === at);
    if (here) root.append(svg("circle", { class: `dot ${line.hue}`, cx: across(here[0]), cy: up(here[1]), r: 4 }));
  }
  if (pick) {
    const point = (event) => {
      const box = root.getBoundingClientRect();
      const inside = ((event.clientX - box.left) / box.width) * width;
      pick(x.min + ((inside - left) / (width - left - right)) * (x.max - x.min));
    };
    root.classList.add("picks");
    root.addEventListener("pointerdown", (event) => { root.setPointerCapture?.(event.pointerId); point(event); });
    root.addEventListener("pointermove", (event) => { if (event.buttons & 1) point(event); });
  }
  return root;
}

/** The range of some values with a little air. */
export function range(values) {
  const finite = values.filter((v) => v !== null && Number.isFinite(v));
  if (!finite.length) return { min: 0, max: 1 };
  const low = Math.min(...finite), high = Math.max(...finite);
  const air = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return { min: low - air, max: high + air };
}
