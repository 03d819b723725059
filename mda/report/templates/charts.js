"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const CONFIG = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
const FONT = { family: 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif', size: 13, color: "#1c2024" };
const AXIS = { gridcolor: "#eceff2", zerolinecolor: "#b5bcc4", linecolor: "#b5bcc4", automargin: true };

function layout(more) {
  const base = { font: FONT, margin: { l: 70, r: 45, t: 45, b: 55 }, modebar: { orientation: "v", bgcolor: "rgba(0,0,0,0)" }, hovermode: "closest", paper_bgcolor: "#fff", plot_bgcolor: "#fff", legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, groupclick: "togglegroup" } };
  return Object.assign(base, more);
}
const axis = (title, more) => Object.assign({}, AXIS, { title: { text: title, standoff: 12 } }, more);
const fade = (colour, alpha) => `rgba(${[1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16)).join(",")},${alpha})`;

function fill(select, values, text = (v) => v) {
  const before = select.value;
  select.replaceChildren(...values.map((v) => new Option(text(v), v)));
  if (values.map(String).includes(before)) select.value = before;
}
const unique = (values) => [...new Set(values)];

/* Curves: one state, the set of hidden arms, behind both the check boxes and the plot's legend. */
const hidden = new Set(DATA.arms.flatMap((arm, i) => (arm.band ? [i] : [])));

function drawCurves() {
  const name = $("curve-choice").value;
  const traces = [];
  for (const line of DATA.curves.filter((c) => c.curve === name)) {
    const arm = DATA.arms[line.arm];
    const shown = !hidden.has(line.arm);
    const group = { legendgroup: String(line.arm), meta: line.arm };
    if (shown && $("curve-band").checked && line.n > 1) {
      const edge = (sign) => line.mean.map((m, i) => m + sign * line.error[i]);
      traces.push(Object.assign({ x: [...line.x, ...[...line.x].reverse()], y: [...edge(1), ...edge(-1).reverse()], fill: "toself", fillcolor: fade(arm.colour, 0.15), line: { width: 0 }, hoverinfo: "skip", showlegend: false, mode: "lines", type: "scatter" }, group));
    }
    traces.push(Object.assign({ x: line.x, y: line.mean, name: `${arm.name} (n = ${line.n})`, mode: "lines", type: "scatter", visible: shown ? true : "legendonly", showlegend: shown || !arm.band, line: { color: arm.colour, dash: arm.dash, width: 2.2 }, hovertemplate: `%{y:.4g} at step %{x:,}<extra>${arm.name}</extra>` }, group));
  }
  const plot = $("plot-curves");
  const first = !plot.data;
  Plotly.react(plot, traces, layout({ height: 520, xaxis: axis(DATA.x), yaxis: axis(DATA.titles[name]) }), CONFIG);
  if (first) {
    plot.on("plotly_legendclick", (event) => { toggle(event.data[event.curveNumber].meta); return false; });
    plot.on("plotly_legenddoubleclick", (event) => { isolate(event.data[event.curveNumber].meta); return false; });
  }
}
function showHidden() {
  document.querySelectorAll("#arm-boxes input").forEach((box) => { box.checked = !hidden.has(Number(box.value)); });
  drawCurves();
}
function toggle(arm) { if (!hidden.delete(arm)) hidden.add(arm); showHidden(); }
function isolate(arm) { hideAll(); hidden.delete(arm); showHidden(); }
function hideAll() { DATA.arms.forEach((_, i) => hidden.add(i)); }

function startCurves() {
  fill($("curve-choice"), unique(DATA.curves.map((c) => c.curve)), (v) => DATA.titles[v]);
  DATA.arms.forEach((arm, i) => {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", value: i, checked: !hidden.has(i) });
    box.addEventListener("change", () => toggle(i));
    const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    swatch.style.borderTopColor = arm.colour;
    swatch.style.borderTopStyle = { dash: "dashed", dashdot: "dashed", dot: "dotted" }[arm.dash] || "solid";
    label.append(box, swatch, arm.name);
    $("arm-boxes").append(label);
  });
  $("curve-choice").addEventListener("change", drawCurves);
  $("curve-band").addEventListener("change", drawCurves);
  $("arms-all").addEventListener("click", () => { hidden.clear(); showHidden(); });
  $("arms-none").addEventListener("click", () => { hideAll(); showHidden(); });
  drawCurves();
}

/* Forest plot */
function drawEffects() {
  const rows = DATA.effects.filter((r) => r.metric === $("effect-metric").value && !DATA.arms[r.arm].band);
  const arms = unique(rows.map((r) => r.arm)).sort((a, b) => a - b);
  const references = unique(rows.map((r) => r.reference));
  const offset = (reference) => 0.16 * (references.indexOf(reference) - (references.length - 1) / 2);
  const names = { control: "against control", random: "against random edits", matched: "against matched random edits, targeted samples excluded", matched_overlap: "against matched random edits, targeted samples allowed", repetition: "against the trivial baseline (repetition)" };
  const traces = references.map((reference) => {
    const own = rows.filter((r) => r.reference === reference);
    const colours = own.map((r) => DATA.arms[r.arm].colour);
    return {
      name: names[reference], type: "scatter", mode: "markers",
      x: own.map((r) => r.mean), y: own.map((r) => arms.indexOf(r.arm) + offset(reference)),
      error_x: { type: "data", symmetric: false, array: own.map((r) => (r.high === null ? 0 : r.high - r.mean)), arrayminus: own.map((r) => (r.low === null ? 0 : r.mean - r.low)), color: "#6b747d", thickness: 2.2, width: 0 },
      marker: { size: 10, symbol: { control: "circle", random: "circle-open", matched: "diamond-open", matched_overlap: "diamond-tall-open", repetition: "square-open" }[reference], color: colours, line: { width: 2, color: colours } },
      text: own.map((r) => `${DATA.arms[r.arm].name}<br>${r.mean} [${r.low ?? "–"}, ${r.high ?? "–"}]<br>n = ${r.n}, corrected p = ${r.p ?? "none"}`), hovertemplate: "%{text}<extra></extra>",
    };
  });
  Plotly.react($("plot-effects"), traces, layout({
    height: 170 + 46 * arms.length, xaxis: axis("mean paired difference"),
    yaxis: Object.assign({}, AXIS, { tickvals: arms.map((_, i) => i), ticktext: arms.map((a) => DATA.arms[a].name), range: [arms.length - 0.5, -0.5], zeroline: false }),
  }), CONFIG);
}

/* Heat map of heads over training */
const SCORE = [[0, "#fff9f0"], [0.25, "#f6c7a1"], [0.5, "#e0803a"], [0.75, "#a34a0b"], [1, "#401b00"]];
const DIFFERENCE = [[0, "#3d0a73"], [0.25, "#9a8cc0"], [0.5, "#f7f7f7"], [0.75, "#f0a04b"], [1, "#7a3a04"]];
const chosenHeads = (arm) => DATA.heads.find((h) => h.arm === arm && h.seed === Number($("head-seed").value) && h.metric === $("head-metric").value);

function rowAt(heads, step) {
  return heads.values[Math.max(0, heads.steps.findLastIndex((s) => s <= step))];
}
function startRange(heads) {
  const slider = $("head-step");
  const end = Number(slider.max) === Number(slider.value);
  slider.max = heads.steps.length - 1;
  if (end || Number(slider.value) > Number(slider.max)) slider.value = slider.max;
}
function drawHeads() {
  const arm = Number($("head-arm").value);
  fill($("head-seed"), unique(DATA.heads.filter((h) => h.arm === arm).map((h) => h.seed)));
  const heads = chosenHeads(arm);
  startRange(heads);
  const slider = $("head-step");
  const step = heads.steps[Number(slider.value)];
  $("head-step-text").value = `step ${step.toLocaleString("en")}`;
  slider.setAttribute("aria-valuetext", `step ${step}`);
  const control = chosenHeads(heads.control);
  const difference = $("head-view").value === "difference" && control;
  const minus = (row, at) => (difference ? row.map((v, i) => v - rowAt(control, at)[i]) : row);
  const all = heads.values.flatMap((row, i) => minus(row, heads.steps[i]));
  const limit = Math.max(...all.map(Math.abs)) || 1;
  const flat = minus(heads.values[Number(slider.value)], step);
  const [layers, count] = heads.shape;
  const z = Array.from({ length: layers }, (_, l) => flat.slice(l * count, (l + 1) * count));
  const few = layers * count <= 200;
  const boxes = heads.unit.map((name) => name.match(/L(\d+)H(\d+)/).slice(1).map(Number)).map(([l, h]) => ({ type: "rect", x0: h - 0.5, x1: h + 0.5, y0: l - 0.5, y1: l + 0.5, line: { color: "#000", width: 2.5 } }));
  Plotly.react($("plot-heads"), [{
    type: "heatmap", z, zmin: difference ? -limit : 0, zmax: limit, colorscale: difference ? DIFFERENCE : SCORE, xgap: 1, ygap: 1,
    texttemplate: few ? "%{z:.3f}" : "", hovertemplate: "layer %{y}, head %{x}: %{z:.4f}<extra></extra>",
    colorbar: { title: { text: difference ? "arm − control" : "score", side: "right" } },
  }], layout({ height: Math.min(700, 160 + 46 * layers), shapes: boxes, xaxis: axis("head", { dtick: Math.ceil(count / 16), showgrid: false, zeroline: false }), yaxis: axis("layer", { dtick: Math.ceil(layers / 16), autorange: "reversed", showgrid: false, zeroline: false }) }), CONFIG);
}
let playing = null;
function play() {
  const slider = $("head-step");
  const stop = () => { clearInterval(playing); playing = null; $("head-play").textContent = "Play"; $("head-play").setAttribute("aria-pressed", "false"); };
  if (playing !== null) return stop();
  if (slider.value === slider.max) slider.value = 0;
  $("head-play").textContent = "Pause";
  $("head-play").setAttribute("aria-pressed", "true");
  playing = setInterval(() => { slider.stepUp(); drawHeads(); if (slider.value === slider.max) stop(); }, 250);
}
function startHeads() {
  const arms = unique(DATA.heads.map((h) => h.arm));
  fill($("head-arm"), arms, (i) => DATA.arms[i].name);
  fill($("head-metric"), unique(DATA.heads.map((h) => h.metric)), (m) => m.replace("_", "-"));
  for (const id of ["head-arm", "head-seed", "head-metric", "head-view"]) $(id).addEventListener("change", drawHeads);
  $("head-step").addEventListener("input", drawHeads);
  $("head-play").addEventListener("click", play);
  drawHeads();
}

/* Scatter and dose-response */
function drawPoints() {
  const groups = unique(DATA.points.map((p) => (DATA.arms[p.arm].band ? -1 : p.arm)));
  const traces = groups.map((i) => {
    const bands = { name: "score bands", intervention: "", colour: "#999999", random: false };
    const arm = i < 0 ? bands : DATA.arms[i];
    const own = DATA.points.filter((p) => (i < 0 ? DATA.arms[p.arm].band : p.arm === i));
    return { name: arm.name, type: "scatter", mode: "markers", visible: i < 0 ? "legendonly" : true, x: own.map((p) => p.x), y: own.map((p) => p.y), text: own.map((p) => `${DATA.arms[p.arm].name}, seed ${p.seed}`), hovertemplate: "%{text}<br>%{x}, %{y}<extra></extra>", marker: { size: i < 0 ? 6 : 9, color: arm.colour, symbol: (arm.intervention === "augment" ? "square" : "circle") + (arm.random ? "-open" : "") } };
  });
  Plotly.react($("plot-icl"), traces, layout({ height: 520, xaxis: axis(`${DATA.titles.strongest || DATA.titles.unit}: run − control`), yaxis: axis("ICL score: run − control (nats)") }), CONFIG);
}
function drawDose() {
  const kinds = unique(DATA.dose.map((d) => d.line));
  const traces = kinds.map((kind) => {
    const own = DATA.dose.filter((d) => d.line === kind).sort((a, b) => a.x - b.x);
    return { name: kind, type: "scatter", mode: "lines+markers", x: own.map((d) => d.x), y: own.map((d) => d.mean), line: { color: own[0].colour, dash: own[0].dash }, marker: { size: 8 }, error_y: { type: "data", symmetric: false, array: own.map((d) => (d.high === null ? 0 : d.high - d.mean)), arrayminus: own.map((d) => (d.low === null ? 0 : d.mean - d.low)), thickness: 1.5 }, hovertemplate: "percentile %{x}: %{y}<extra></extra>" };
  });
  const random = DATA.effects.filter((r) => r.metric === "unit" && r.reference === "control" && DATA.arms[r.arm].random);
  const edits = unique(DATA.dose.map((d) => d.intervention));
  for (const r of random.filter((r) => edits.includes(DATA.arms[r.arm].intervention))) {
    traces.push({ name: DATA.arms[r.arm].name, type: "scatter", mode: "lines", x: [0, 100], y: [r.mean, r.mean], line: { color: DATA.arms[r.arm].colour, dash: DATA.arms[r.arm].dash } });
  }
  Plotly.react($("plot-dose"), traces, layout({ height: 460, xaxis: axis("percentile of the influence score (0 = lowest)", { range: [0, 100] }), yaxis: axis(`${DATA.titles.unit}: change`) }), CONFIG);
}

startCurves();
fill($("effect-metric"), unique(DATA.effects.map((r) => r.metric)), (m) => DATA.titles[m] || m);
$("effect-metric").addEventListener("change", drawEffects);
drawEffects();
if (DATA.heads.length) startHeads();
drawPoints();
if ($("plot-dose")) drawDose();
