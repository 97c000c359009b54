// The state of the page of a census, its controls, and what is drawn anew when one of them moves.

const page = {
  run: null, arm: null, measure: null, layer: 0, head: 0,

  choose(change) {
    Object.assign(this, change);
    settle();
    show();
  },
};

const KEPT = ["measure", "layer", "head"];

// Keeps every choice within what the census holds.
function settle() {
  const { layers, heads } = page.run.axes;
  if (!layers.includes(page.layer)) page.layer = layers[0];
  if (!heads.includes(page.head)) page.head = heads[0];
  if (!page.run.maps[page.arm].some((map) => map.key === page.measure)) page.measure = mapShown(page).key;
}

function fillControls() {
  const groups = Map.groupBy(page.run.maps[page.arm], (map) => map.group);
  byId("measure").replaceChildren(...[...groups].map(([label, maps]) =>
    node("optgroup", { label }, ...maps.map((map) => node("option", { value: map.key }, map.label)))));
  const { layers, heads } = page.run.axes;
  byId("layer").replaceChildren(...layers.map((layer) => node("option", { value: layer }, `L${layer}`)));
  byId("head").replaceChildren(...heads.map((head) => node("option", { value: head }, `H${head}`)));
}

function show() {
  for (const id of KEPT) byId(id).value = page[id];
  byId("head-map").replaceChildren(drawHeadMap(page));
  byId("rule").textContent = ruleSaid();
  showHead(page);
  history.replaceState(null, "", `#${new URLSearchParams(KEPT.map((key) => [key, page[key]]))}`);
}

// What the map shows, and what a head needs to hold the role.
function ruleSaid() {
  const map = mapShown(page);
  if (!map.assigned) return `${map.label}: ${map.group}. No verdict is made of it.`;
  const held = floatsOf(map.assigned).reduce((sum, one) => sum + one, 0);
  const needed = `a score above ${words(map.threshold)} and above ${words(floatsOf(map.null)[0])}, and q below 0.05`;
  return `${map.label}, ${map.unit}. A dot marks the ${held} that hold the role: ${needed}.`;
}

// Charts count other things than prompts here.
function reworded(svg, chart) {
  for (const title of svg.querySelectorAll(".point title")) {
    const [value, limits] = title.textContent.split("; ");
    const spread = limits.startsWith("95 % interval") ? [limits.replace("95 % interval", chart.spread)] : [];
    title.textContent = [value, ...spread].join("; ");
  }
  return svg;
}

function countedRows(chart) {
  const [head, ...rows] = chartRows(chart);
  return [[...head.slice(0, -1), chart.counted], ...rows];
}

function chartFigure(chart, key, draw, rows) {
  const scroll = node("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": chart.title }, draw());
  const caption = node("figcaption", {}, node("strong", {}, chart.title), ` ${chart.note}`);
  return node("figure", { id: key }, scroll, caption, saveButtons(key, () => scroll.querySelector("svg"), () => csvText(rows())));
}

const DEPTH_NOTE = {
  title: "Depth of roles",
  note: "In brackets how many heads hold the role. Intervals are over sequences; what weights decide has none.",
};

function showCharts() {
  const depth = page.run.depths.length
    ? [chartFigure(DEPTH_NOTE, "depth_of_roles", () => drawDepths(page), () => depthRows(page))] : [];
  const charts = page.run.charts.map((chart) =>
    chartFigure(chart, chart.key, () => reworded(drawChart(chart), chart), () => countedRows(chart)));
  byId("by-depth").hidden = depth.length + charts.length === 0;
  byId("charts").replaceChildren(...depth, ...charts);
}

function recalled() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  for (const key of ["layer", "head"]) {
    if (key in given) given[key] = Number(given[key] || NaN);
  }
  return Object.fromEntries(Object.entries(given).filter(([key]) => KEPT.includes(key)));
}

function listenToControls() {
  for (const id of KEPT) {
    const control = byId(id);
    control.addEventListener("change", () => page.choose({ [id]: id === "measure" ? control.value : Number(control.value) }));
  }
  window.addEventListener("hashchange", () => page.choose(recalled()));
}

function addSaving() {
  const figure = (id) => () => byId(id).querySelector("svg");
  byId("head-map").after(saveButtons("head_map", figure("head-map"), () => csvText(headRows(page))));
  byId("head-table").after(saveButtons("head", null, () => csvText(headTableRows(page))));
  const profile = node("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Offset profile" });
  const caption = node("figcaption", {}, "Mean share of each distance behind the query, without slot 0, beside even rows.");
  const save = saveButtons("offset_profile", figure("profile"), () => csvText(countedRows(profileChart(page, true))));
  byId("profile").append(profile, caption, save);
}

function saveTables() {
  for (const table of document.querySelectorAll("table[data-name]")) {
    const csv = () => page.run.tables[table.dataset.name];
    table.parentElement.after(saveButtons(`table_${table.dataset.name}`, null, csv));
  }
}

// The head shown first: the best of the first role that any holds.
function firstChoice() {
  const maps = page.run.maps[page.arm];
  const map = maps.find((one) => one.assigned && floatsOf(one.assigned).some(Boolean)) ?? maps[0];
  const scores = [...floatsOf(map.value)].map((value) => (Number.isNaN(value) ? -Infinity : value));
  const place = scores.indexOf(Math.max(...scores));
  const { heads } = page.run.axes;
  return { measure: map.key, layer: Math.floor(place / heads.length), head: place % heads.length };
}

function start() {
  page.run = JSON.parse(byId("census").textContent);
  page.arm = page.run.model;
  saveTables();
  listenToTheme(() => {
    showCharts();
    if (page.measure !== null) show();
  });
  showCharts();
  const known = page.run.maps[page.arm].length > 0;
  byId("drawn").hidden = !known;
  document.querySelector(".controls").hidden = !known;
  if (!known) return;
  addSaving();
  fillControls();
  listenToControls();
  page.choose({ ...firstChoice(), ...recalled() });
}

start();
