// The state of the page, its controls, and what is drawn anew when one of them moves.

const page = {
  run: null, prompt: null, traces: new Map(), arms: [], arm: null, other: "", step: 1, layer: 0, head: 0,
  view: "share", measure: null, cursor: { query: 0, slot: 0 }, documents: new Map(), ticket: 0,

  // The traces shown; the other one only where both hold the same tokens.
  attended() {
    const trace = this.traces.get(this.arm);
    const beside = this.other && this.other !== this.arm ? this.traces.get(this.other) : null;
    const step = Math.min(this.step, trace.nSteps);
    const comparable = beside && beside.hasRows(step) && trace.hasRows(step) && trace.holdsSameTokens(beside, step);
    return { trace, other: comparable ? beside : null, refused: beside && !comparable, step };
  },

  // Places of the chosen layer and head along the axes of one trace.
  axis(trace) {
    const place = (numbers, wanted) => Math.max(numbers.indexOf(wanted), 0);
    return { layer: place(trace.layers, this.layer), head: place(trace.heads, this.head) };
  },

  headName() {
    const trace = this.traces.get(this.arm);
    const { layer, head } = this.axis(trace);
    return `L${trace.layers[layer]}H${trace.heads[head]}`;
  },

  choose(change) {
    if (change.prompt !== undefined && change.prompt !== this.prompt) return load(change.prompt, change);
    Object.assign(this, change);
    if (this.arms.length) byId("status").textContent = "";
    if (change.query !== undefined) this.cursor = { ...this.cursor, query: change.query };
    settle();
    show();
    return undefined;
  },
};

// Called by the files beside the page.
function tempoPrompt(document) {
  page.documents.set(document.id, document);
}
globalThis.tempoPrompt = tempoPrompt;

function fetchPrompt(id) {
  if (page.documents.has(id)) return Promise.resolve();
  const file = `${page.run.dataFolder}/${encodeURIComponent(id)}.js`;
  return new Promise((done, failed) => {
    const script = node("script", { src: file });
    script.addEventListener("load", done);
    script.addEventListener("error", () => failed(new Error(`expected ${file} beside this page, found nothing; keep the folder with the page`)));
    document.head.append(script);
  });
}

async function load(id, change = {}) {
  const ticket = ++page.ticket;
  const status = byId("status");
  status.textContent = `loading ${id}`;
  try {
    await fetchPrompt(id);
    const found = page.documents.get(id);
    const traces = await Promise.all(Object.entries(found.arms).map(([arm, data]) => Trace.read(arm, data)));
    if (ticket !== page.ticket) return;
    page.traces = new Map(traces.map((trace) => [trace.name, trace]));
    page.arms = page.run.arms.map((arm) => arm.name).filter((arm) => page.traces.has(arm));
    Object.assign(page, change, { prompt: id });
    if (!("step" in change) && page.arms.length) page.step = widestStep();
    status.textContent = page.arms.length ? "" : `${id} was not decoded`;
    settle();
    fillControls();
    show();
  } catch (error) {
    if (ticket !== page.ticket) return;
    const first = page.run.prompts[0].id;
    if (page.prompt === null && id !== first) await load(first, change);
    status.textContent = error.message;
    byId("prompt").value = page.prompt ?? id;
  }
}

// The first of the widest sets.
function widestStep() {
  const trace = page.traces.get(page.arm) ?? page.traces.get(page.arms[0]);
  const widths = trace.members.map((slots, step) => (step > 0 ? slots.length : 0));
  return widths.indexOf(Math.max(...widths));
}

// Keeps every choice within what the prompt holds.
function settle() {
  if (!page.arms.length) return;
  if (!page.traces.has(page.arm)) page.arm = page.arms[0];
  if (!page.traces.has(page.other) || page.other === page.arm) page.other = "";
  const trace = page.traces.get(page.arm);
  page.step = Math.min(Math.max(page.step, 0), trace.nSteps);
  page.cursor = { ...page.cursor, query: Math.min(page.cursor.query, trace.members[page.step].length - 1) };
  if (!trace.layers.includes(page.layer)) page.layer = trace.layers[0];
  if (!trace.heads.includes(page.head)) page.head = trace.heads[0];
  if (page.view === "difference" && !page.attended().other) page.view = "share";
}

function options(select, rows, chosen) {
  select.replaceChildren(...rows.map(([value, text]) => node("option", { value }, text)));
  select.value = chosen;
}

function fillControls() {
  options(byId("prompt"), page.run.prompts.map(({ id, text }) => [id, `${id}: ${glyphs(text, 60).replaceAll("\u00b7", " ")}`]), page.prompt);
  if (!page.arms.length) return;
  const trace = page.traces.get(page.arm);
  const arms = page.arms.map((arm) => [arm, arm]);
  options(byId("arm"), arms, page.arm);
  options(byId("other"), [["", "nothing"], ...arms.filter(([arm]) => arm !== page.arm)], page.other);
  options(byId("layer"), trace.layers.map((layer) => [layer, `L${layer}`]), page.layer);
  options(byId("head"), trace.heads.map((head) => [head, `H${head}`]), page.head);
  options(byId("measure"), mapsOf(page, page.arm).map((map) => [map.key, map.label]), mapShown(page)?.key ?? "");
  const views = Object.entries(VIEWS).filter(([key]) => key !== "difference" || page.attended().other);
  options(byId("view"), views.map(([key, view]) => [key, view.name]), page.view);
  byId("step").max = trace.nSteps;
  byId("step").value = page.step;
}

function place(id, svg) {
  byId(id).replaceChildren(svg);
}

function show() {
  const drawn = page.arms.length > 0;
  for (const section of document.querySelectorAll("section.of-prompt")) section.hidden = !drawn;
  if (!drawn) return;
  fillControls();
  byId("shown").textContent = `Shown: prompt ${page.prompt}, arm ${page.arm}, step ${page.step}, ${page.headName()}.`;
  byId("step-said").textContent = `${page.step} of ${page.traces.get(page.arm).nSteps}`;
  place("lattice", drawLattice(page));
  bringIntoView(byId("lattice"), byId("lattice").querySelector('[aria-pressed="true"]'));
  showHeadMap();
  showAttention();
  showCharts();
  remember();
}

// Scrolls sideways where the window is narrower than the figure, and no further than needed.
function bringIntoView(scroll, chosen) {
  if (!chosen) return;
  const { x, width } = chosen.getBBox();
  if (x < scroll.scrollLeft || x + width > scroll.scrollLeft + scroll.clientWidth - 20) {
    scroll.scrollLeft = Math.max(0, x - scroll.clientWidth / 2);
  }
}

function showHeadMap() {
  const known = mapShown(page) !== null;
  byId("heads").hidden = !known;
  if (known) place("head-map", drawHeadMap(page));
}

function showAttention() {
  const { trace, refused, step, other } = page.attended();
  const first = firstDrawn(trace, step);
  const rows = attentionRows(page, first);
  const said = [];
  if (!rows) said.push(trace.level === "reduced" ? "This trace was reduced to group masses: it holds no rows." : `Step ${step} was not captured in ${trace.name}.`);
  if (rows && first > 0) said.push(`The last ${rows.length - first} of ${rows.length} queries are drawn; the CSV holds all.`);
  if (refused) said.push(`${page.other} does not hold the same tokens and rows up to step ${step}: nothing to subtract.`);
  const errors = [trace, other].map((each) => each?.rows?.relativeError ?? 0);
  const coarsest = errors[1] > errors[0] ? other : trace;
  if (rows && Math.max(...errors) > 0.001) said.push(`So many rows are kept in few bytes: weights are within ${words(Math.max(...errors) * 100)} %, none is told apart below ${words(Math.exp(coarsest.rows.floor))}.`);
  byId("attention-note").textContent = said.join(" ");
  byId("attention-title").textContent = `Attention of ${page.headName()} at step ${step}, ${trace.name}${other ? ` beside ${other.name}` : ""}`;
  byId("detail").hidden = !rows;
  byId("attention").hidden = !rows;
  byId("attention").replaceChildren(...(rows ? [drawAttention(page, rows)] : []));
}

function showCharts() {
  const charts = page.run.charts.filter((chart) => chart.arm === null || chart.arm === page.arm);
  byId("charts").replaceChildren(...charts.map((chart) => {
    const svg = drawChart(chart);
    const scroll = node("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": chart.title }, svg);
    const caption = node("figcaption", {}, node("strong", {}, chart.title), ` ${chart.note}`);
    return node("figure", { id: chart.key }, scroll, caption, saveButtons(chart.key, () => svg, () => csvText(chartRows(chart))));
  }));
}

const KEPT = ["prompt", "arm", "other", "step", "layer", "head", "view", "measure"];

// The address keeps what is shown, so that a link leads back to it.
function remember() {
  const kept = KEPT.filter((key) => page[key] !== null && page[key] !== "").map((key) => [key, page[key]]);
  history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
}

function recalled() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  for (const key of ["step", "layer", "head"]) {
    if (key in given) given[key] = Number(given[key] || NaN);
    if (!Number.isInteger(given[key])) delete given[key];
  }
  if (!Object.hasOwn(VIEWS, given.view ?? "")) delete given.view;
  if (!page.run.prompts.some((prompt) => prompt.id === given.prompt)) delete given.prompt;
  return Object.fromEntries(Object.entries(given).filter(([key]) => KEPT.includes(key)));
}

function listenToControls() {
  const numbers = ["step", "layer", "head"];
  for (const id of KEPT) {
    const control = byId(id);
    const read = () => (numbers.includes(id) ? Number(control.value) : control.value);
    const change = () => page.choose({ [id]: read(), ...(id === "other" && { view: control.value ? "difference" : "share" }) });
    control.addEventListener(id === "step" ? "input" : "change", change);
  }
  for (const [id, by] of [["step-back", -1], ["step-on", 1]]) {
    byId(id).addEventListener("click", () => page.choose({ step: page.step + by }));
  }
  listenToTheme(show);
  window.addEventListener("hashchange", () => page.choose(recalled()));
}

function attentionShown() {
  const { trace, other, step } = page.attended();
  return [page.prompt, trace.name, ...(other ? ["minus", other.name] : []), `step${step}`, page.headName()];
}

function addSaving() {
  const figure = (id) => () => byId(id).querySelector("svg");
  byId("lattice").after(saveButtons("lattice", figure("lattice"), () => csvText(latticeRows(page)), () => [page.prompt]));
  byId("head-map").after(saveButtons("head_map", figure("head-map"), () => csvText(headRows(page)), () => [page.arm, mapShown(page).key]));
  byId("attention").after(saveButtons("attention", figure("attention"), () => csvText(attentionTable(page)), attentionShown));
  for (const table of document.querySelectorAll("table[data-name]")) {
    table.parentElement.after(saveButtons(`table_${table.dataset.name}`, null, () => page.run.tables[table.dataset.name]));
  }
}

function start() {
  page.run = JSON.parse(byId("run").textContent);
  for (const each of document.querySelectorAll("script.prompt")) tempoPrompt(JSON.parse(each.textContent));
  listenToControls();
  addSaving();
  const wanted = { prompt: page.run.prompts[0].id, ...surestHead(), ...recalled() };
  load(wanted.prompt, wanted);
}

// The head shown first: the one that differs most surely from its null, else one in the middle.
function surestHead() {
  const { layers, heads } = page.run.axes;
  if (!layers) return {};
  const q = Object.values(page.run.maps).flat().find((map) => map.q)?.q;
  const values = q ? [...floatsOf(q)] : [];
  const least = Math.min(...values.filter(Number.isFinite));
  const cell = Number.isFinite(least) ? values.indexOf(least) : Math.floor(layers.length / 2) * heads.length;
  return { layer: layers[Math.floor(cell / heads.length)], head: heads[cell % heads.length] };
}

start();
