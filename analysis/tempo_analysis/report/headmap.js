// Layers x heads, coloured by one measure; choosing a cell chooses the head shown.

const HEAD = { width: 30, height: 15, left: 44, top: 30 };

function mapsOf(page, arm) {
  const own = page.run.maps[arm] ?? page.run.maps[armRow(page, arm)?.of] ?? [];
  return [...own, ...(page.run.roleMaps ?? [])];
}

function armRow(page, arm) {
  return page.run.arms.find((row) => row.name === arm);
}

function mapShown(page) {
  const maps = mapsOf(page, page.arm);
  return maps.find((map) => map.key === page.measure) ?? maps[0] ?? null;
}

// How a value becomes a colour, and the words at both ends of the key.
function mapScale(map, values) {
  const known = [...values].filter(Number.isFinite);
  if (map.scale === "log") {
    const most = Math.max(Math.log(2), ...known.map((value) => Math.abs(Math.log(value))).filter(Number.isFinite));
    const ends = [words(Math.exp(-most)), words(Math.exp(most))];
    return { colour: (value) => signedColour(Math.log(value) / most), at: (place) => Math.exp((2 * place - 1) * most), ends };
  }
  if (map.scale === "score") return scoreScale(map, known);
  const most = map.scale === "share" ? 1 : Math.max(1, ...known);
  const ends = ["0", words(most)];
  return { colour: (value) => mix(theme("surface"), theme("full"), Math.max(0, value / most)), at: (place) => place * most, ends };
}

// From 0 to the largest score or to the threshold, so that noise stays pale.
function scoreScale(map, known) {
  const most = Math.max(map.threshold ?? 0, ...known.map(Math.abs)) || 1;
  if (known.some((value) => value < -0.05 * most)) {
    return { colour: (value) => signedColour(value / most), at: (place) => (2 * place - 1) * most, ends: [words(-most), words(most)] };
  }
  return { colour: (value) => mix(theme("surface"), theme("full"), Math.max(0, value / most)), at: (place) => place * most, ends: ["0", words(most)] };
}

function drawHeadMap(page) {
  const map = mapShown(page);
  const { layers, heads } = page.run.axes;
  const values = floatsOf(map.value);
  const assigned = map.assigned ? floatsOf(map.assigned) : [];
  const scale = mapScale(map, values);
  const width = HEAD.left + heads.length * HEAD.width + 12;
  const height = HEAD.top + layers.length * HEAD.height + 40;
  const svg = sheet(Math.max(width, 200), height, `${map.label}, layer by head, ${page.arm}`);
  svg.setAttribute("role", "application");
  svg.setAttribute("aria-roledescription", "map of heads; move with the arrow keys");
  svg.setAttribute("tabindex", "0");
  const ink = theme("muted");
  heads.forEach((head, column) => {
    const x = HEAD.left + (column + 0.5) * HEAD.width;
    svg.append(mark("text", { x, y: 20, fill: ink, "text-anchor": "middle", "font-size": 11 }, `H${head}`));
  });
  layers.forEach((layer, row) => {
    const y = HEAD.top + row * HEAD.height;
    svg.append(mark("text", { x: HEAD.left - 8, y: y + 11, fill: ink, "text-anchor": "end", "font-size": 10 }, `L${layer}`));
    heads.forEach((head, column) => {
      const value = values[row * heads.length + column];
      const fill = Number.isFinite(value) ? scale.colour(value) : theme("page");
      svg.append(mark("rect", {
        x: HEAD.left + column * HEAD.width + 1, y: y + 1, width: HEAD.width - 2, height: HEAD.height - 2, rx: 2,
        fill, stroke: theme("rule"), "stroke-width": 0.5, class: "head", "data-row": row, "data-column": column,
      }));
      if (assigned[row * heads.length + column]) svg.append(heldMark(row, column, fill));
    });
  });
  drawGroups(page, svg, heads, layers);
  const shown = chosenHead(page);
  if (shown) svg.append(mark("rect", { ...headBox(shown), fill: "none", stroke: theme("ink"), "stroke-width": 2.5, rx: 3, "pointer-events": "none" }));
  colourKey(svg, HEAD.left, height - 28, Math.max(heads.length, 4) * HEAD.width, (place) => scale.colour(scale.at(place)), scale.ends);
  listenToHeads(page, svg);
  describeHead(page, shown ?? { row: 0, column: 0 });
  return svg;
}

// A dot on a head that holds the role of the map.
function heldMark(row, column, fill) {
  const [x, y] = [HEAD.left + (column + 0.5) * HEAD.width, HEAD.top + (row + 0.5) * HEAD.height];
  return mark("circle", { cx: x, cy: y, r: 3, fill: inkOn(fill), class: "held", "pointer-events": "none" });
}

function headBox({ row, column }) {
  const [x, y] = [HEAD.left + column * HEAD.width, HEAD.top + row * HEAD.height];
  return { x, y, width: HEAD.width, height: HEAD.height };
}

// A line between heads that read different KV heads.
function drawGroups(page, svg, heads, layers) {
  const group = (head) => Math.floor(head / page.run.queriesPerKvHead);
  if (page.run.queriesPerKvHead < 2) return;
  const [top, bottom] = [HEAD.top - 2, HEAD.top + layers.length * HEAD.height + 2];
  heads.slice(1).forEach((head, before) => {
    if (group(head) === group(heads[before])) return;
    const x = HEAD.left + (before + 1) * HEAD.width;
    svg.append(mark("line", { x1: x, x2: x, y1: top, y2: bottom, stroke: theme("muted"), "stroke-width": 1.5 }));
  });
}

function chosenHead(page) {
  const row = page.run.axes.layers.indexOf(page.layer);
  const column = page.run.axes.heads.indexOf(page.head);
  return row < 0 || column < 0 ? null : { row, column };
}

function listenToHeads(page, svg) {
  const { layers, heads } = page.run.axes;
  const cellOf = (event) => {
    const { row, column } = event.target.dataset ?? {};
    return row === undefined ? null : { row: Number(row), column: Number(column) };
  };
  svg.addEventListener("pointermove", (event) => {
    const cell = cellOf(event);
    if (cell) describeHead(page, cell);
  });
  svg.addEventListener("pointerleave", () => describeHead(page, chosenHead(page) ?? { row: 0, column: 0 }));
  svg.addEventListener("click", (event) => {
    const cell = cellOf(event);
    if (cell) chooseHead(page, cell);
  });
  svg.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const at = chosenHead(page) ?? { row: 0, column: 0 };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const [row, column] = [at.row + move[0], at.column + move[1]];
    if (layers[row] === undefined || heads[column] === undefined) return;
    chooseHead(page, { row, column });
  });
}

// The map is drawn anew; the keys go on from the head chosen.
function chooseHead(page, { row, column }) {
  const { layers, heads } = page.run.axes;
  page.choose({ layer: layers[row], head: heads[column] });
  byId("head-map").querySelector("svg").focus({ preventScroll: true });
}

function describeHead(page, { row, column }) {
  const map = mapShown(page);
  const { layers, heads } = page.run.axes;
  const cell = row * heads.length + column;
  const kv = Math.floor(heads[column] / page.run.queriesPerKvHead);
  const beside = ["value", "chance", "null", "q"].filter((name) => map[name]);
  const names = { value: map.label, null: map.nullName ?? "null" };
  const said = beside.map((name) => `${names[name] ?? name} ${words(floatsOf(map[name])[cell])}`);
  if (map.assigned) said.push(floatsOf(map.assigned)[cell] ? "holds the role" : "does not hold the role");
  const ofArm = () => (page.run.maps[page.arm] ? page.arm : `${armRow(page, page.arm).of} (${page.arm} has no map of its own)`);
  const owner = map.owner ?? ofArm();
  byId("head-detail").textContent = `L${layers[row]}H${heads[column]}, KV head ${kv}, ${owner}: ${said.join("; ")}`;
}

function headRows(page) {
  const map = mapShown(page);
  const { layers, heads } = page.run.axes;
  const beside = ["value", "chance", "null", "q", "percentile", "assigned"].filter((name) => map[name]);
  const arrays = beside.map((name) => floatsOf(map[name]));
  const rows = layers.flatMap((layer, row) => heads.map((head, column) => {
    const cell = row * heads.length + column;
    return [`L${layer}H${head}`, layer, head, ...arrays.map((array) => array[cell])];
  }));
  return [["head", "layer", "index", ...beside], ...rows];
}
