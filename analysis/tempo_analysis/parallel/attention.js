// One step, layer and head: query rows x slots, arcs above, what the cursor is on below.

const CELL = { least: 23, most: 46, height: 26, arcs: 84, band: 20 };
const SHOWN_ARCS = 14;
const MOST_CELLS = 16000; // a browser stands still for a minute over a million
const LEAST_ROWS = 32;

// What is drawn: one number for each cell, and how it becomes a colour.
const VIEWS = {
  share: {
    name: "share of the row",
    of: (cell) => cell.share,
    colour: shareColour,
    ends: ["0", "1 (square-root scale)"],
    at: (place) => place ** 2,
  },
  rest: {
    name: "share without slot 0",
    of: (cell) => cell.restShare,
    colour: shareColour,
    ends: ["0", "1 (square-root scale)"],
    at: (place) => place ** 2,
  },
  chance: {
    name: "times chance",
    of: (cell) => (cell.visible ? Math.log2(cell.share / cell.chance) / 4 : NaN),
    colour: signedColour,
    ends: ["1/16 of chance", "16 times"],
    at: (place) => 2 * place - 1,
  },
  difference: {
    name: "difference of shares",
    of: (cell) => cell.difference,
    colour: (value) => signedColour(value * 4),
    ends: ["\u2212\u00bc", "+\u00bc"],
    at: (place) => (2 * place - 1) / 4,
  },
};

// A long prompt has too many rows to draw: the first of the last ones that can be.
function firstDrawn(trace, step) {
  const most = Math.max(LEAST_ROWS, Math.floor(MOST_CELLS / trace.nSlots(step)));
  return Math.max(0, trace.members[step].length - most);
}

// The rows of the step shown, from one query on (null before it); with another arm beside it, every
// cell knows its difference.
function attentionRows(page, first = 0) {
  const { trace, other, step } = page.attended();
  if (!trace.hasRows(step)) return null;
  const { layer, head } = page.axis(trace);
  const beside = other && page.axis(other);
  return trace.members[step].map((_, query) => {
    if (query < first) return null;
    const cells = trace.row(step, layer, head, query);
    if (!other) return cells;
    const twin = other.row(step, beside.layer, beside.head, query);
    return cells.map((cell, slot) => ({
      ...cell, twin: twin[slot], difference: cell.share - twin[slot].share,
    }));
  });
}

function drawAttention(page, rows) {
  const { trace, step } = page.attended();
  const view = VIEWS[page.view];
  const labels = trace.members[step].map((slot) => glyphs(trace.slots.text[slot]));
  const left = Math.max(...labels.map((text) => textWidth(text)), 40) + 16;
  const nSlots = trace.nSlots(step);
  const longest = Math.max(...trace.slots.text.slice(0, nSlots).map((text) => textWidth(glyphs(text))));
  const room = byId("attention").clientWidth - left - 0.5 * longest - 20;
  const wide = Math.min(Math.max(room / nSlots, CELL.least), CELL.most);
  const grid = { left, wide, heading: CELL.arcs + 0.87 * longest + 14 };
  const top = grid.heading + CELL.band;
  const width = Math.max(left + nSlots * wide + 0.5 * longest + 8, 420);
  const first = firstDrawn(trace, step);
  const height = top + (rows.length - first) * CELL.height + 52;
  const svg = sheet(width, height, attentionLabel(page));
  svg.setAttribute("role", "application");
  svg.setAttribute("aria-roledescription", "attention map; move with the arrow keys");
  svg.setAttribute("tabindex", "0");
  svg.append(...slotHeadings(trace, step, grid));
  rows.forEach((cells, query) => {
    if (query < first) return;
    const y = top + (query - first) * CELL.height;
    const name = { x: left - 8, y: y + 17, "text-anchor": "end", fill: theme("ink"), class: "row" };
    svg.append(mark("text", name, labels[query]));
    for (const cell of cells) svg.append(...cellMarks(cell, view, { query, x: left + cell.slot * wide, y, wide }));
  });
  const cursor = mark("g", { class: "cursor", "pointer-events": "none" });
  svg.append(cursor);
  const from = (place) => view.colour(view.at(place));
  colourKey(svg, left, height - 34, 180, from, view.ends);
  const placed = { ...grid, top, first, trace, step, rows, svg, cursor };
  listen(page, placed);
  moveCursor(page, placed, page.cursor);
  return svg;
}

function attentionLabel(page) {
  const { trace, other, step } = page.attended();
  const than = other ? ` minus ${other.name}` : "";
  return `Attention of ${page.headName()} at step ${step}, ${trace.name}${than}, ${VIEWS[page.view].name}`;
}

// Token above its column, turned; a band below says which slots were written together.
function slotHeadings(trace, step, { left, wide, heading: y }) {
  const found = [];
  for (let slot = 0; slot < trace.nSlots(step); slot++) {
    const x = left + (slot + 0.5) * wide;
    const dead = trace.slots.died_at_step[slot] >= 0 && trace.slots.died_at_step[slot] < step;
    const text = mark("text", {
      transform: `translate(${x + 4}, ${y - 2}) rotate(-60)`, fill: dead ? theme("muted") : theme("ink"),
      "text-decoration": dead ? "line-through" : null,
    }, glyphs(trace.slots.text[slot]));
    found.push(text);
  }
  trace.members.slice(0, step + 1).forEach((slots, written) => {
    const x = left + slots[0] * wide + 2;
    const width = slots.length * wide - 4;
    const fill = written > 0 && slots.length > 1 ? theme("accent") : theme("rule");
    found.push(mark("rect", { x, y: y + 4, width, height: 4, fill, rx: 2 }));
    const place = { x: x + width / 2, y: y + 17, "text-anchor": "middle", fill: theme("muted"), "font-size": 10 };
    found.push(mark("text", place, written === 0 ? "prompt" : String(written)));
  });
  return found;
}

function cellMarks(cell, view, { query, x, y, wide }) {
  const value = view.of(cell);
  const known = cell.visible && !Number.isNaN(value);
  const isSibling = cell.relation === "sibling";
  const rect = mark("rect", {
    x: x + 1, y: y + 1, width: wide - 2, height: CELL.height - 2, rx: 2,
    fill: known ? view.colour(value) : theme("page"), stroke: isSibling ? theme("accent") : theme("rule"),
    "stroke-width": isSibling ? 2 : 0.5, class: isSibling ? "cell sibling" : "cell",
    "data-query": query, "data-slot": cell.slot,
  });
  if (known) return [rect];
  const slash = { x1: x + 7, y1: y + CELL.height - 8, x2: x + wide - 7, y2: y + 8 };
  return [rect, mark("line", { ...slash, stroke: theme("rule"), "pointer-events": "none" })];
}

function listen(page, placed) {
  const { svg, rows, trace, step } = placed;
  const goTo = (event) => {
    const { query, slot } = event.target.dataset ?? {};
    if (slot !== undefined) moveCursor(page, placed, { query: Number(query), slot: Number(slot) });
  };
  svg.addEventListener("pointermove", goTo);
  svg.addEventListener("pointerdown", goTo);
  svg.addEventListener("keydown", (event) => {
    const { query, slot } = page.cursor;
    const moves = {
      ArrowLeft: { query, slot: slot - 1 }, ArrowRight: { query, slot: slot + 1 },
      ArrowUp: { query: query - 1, slot }, ArrowDown: { query: query + 1, slot },
      Home: { query, slot: 0 }, End: { query, slot: trace.nSlots(step) - 1 },
    };
    const to = moves[event.key];
    if (!to) return;
    event.preventDefault();
    if (!rows[to.query]?.[to.slot]) return;
    moveCursor(page, placed, to);
    bringIntoView(byId("attention"), placed.cursor.lastChild);
  });
}

function moveCursor(page, placed, { query, slot }) {
  const { rows, trace, step, first, cursor, left, top, wide } = placed;
  const at = { query: Math.max(Math.min(query, rows.length - 1), first), slot: Math.min(slot, trace.nSlots(step) - 1) };
  page.cursor = at;
  const box = { x: left + at.slot * wide, y: top + (at.query - first) * CELL.height, width: wide, height: CELL.height };
  cursor.replaceChildren(
    ...arcs(placed, at),
    mark("rect", { ...box, fill: "none", stroke: theme("ink"), "stroke-width": 2.5, rx: 3 }),
  );
  placed.svg.querySelectorAll(".row").forEach((name, number) => {
    name.setAttribute("font-weight", number === at.query - first ? 700 : 400);
  });
  showDetail(page, placed, at);
}

// From the query's own column to the slots it reads most, as thick as the root of the share.
function arcs({ trace, step, rows, left, wide }, at) {
  const own = trace.members[step][at.query];
  const middle = (slot) => left + (slot + 0.5) * wide;
  const read = rows[at.query].filter((cell) => cell.slot !== own && cell.share > 0);
  const most = read.toSorted((a, b) => b.share - a.share).slice(0, SHOWN_ARCS);
  return most.map((cell) => {
    const [from, to] = [middle(own), middle(cell.slot)];
    const rise = Math.min(CELL.arcs - 6, 14 + Math.abs(from - to) * 0.35);
    const chosen = cell.slot === at.slot;
    return mark("path", {
      d: `M${from},${CELL.arcs}C${from},${CELL.arcs - rise} ${to},${CELL.arcs - rise} ${to},${CELL.arcs}`,
      fill: "none", stroke: chosen ? theme("ink") : theme("accent"), class: "arc", "data-slot": cell.slot,
      "stroke-width": (0.6 + 7 * Math.sqrt(cell.share)).toFixed(2), "stroke-opacity": chosen ? 1 : 0.55,
    });
  });
}

function showDetail(page, { trace, step, rows }, { query, slot }) {
  const cell = rows[query][slot];
  const { slots } = trace;
  const own = trace.members[step][query];
  const said = (value) => words(value, trace.rows.relativeError > 0.01 ? 2 : 3);
  const facts = [
    ["query", `${glyphs(slots.text[own], 40)} (slot ${own}, position ${exact(slots.position[own])})`],
    ["reads", `${glyphs(slots.text[slot], 40)} (slot ${slot}, position ${exact(slots.position[slot])}, ${cell.relation})`],
  ];
  if (cell.visible) {
    facts.push(["weight", said(cell.weight)], ["share of the row", said(cell.share)]);
    facts.push(["chance", said(cell.chance)], ["times chance", said(cell.share / cell.chance)]);
    facts.push(["share without slot 0", said(cell.restShare)], ["its chance", said(cell.restChance)]);
  } else facts.push(["weight", "not visible to this query"]);
  if (cell.twin) {
    facts.push([`share in ${page.attended().other.name}`, said(cell.twin.share)]);
    facts.push(["difference", said(cell.difference)]);
  }
  const terms = facts.map(([term, value]) => node("div", {}, node("dt", {}, term), node("dd", { "data-term": term }, value)));
  byId("detail").replaceChildren(...terms);
}

function attentionTable(page) {
  const { trace, step } = page.attended();
  const head = ["query_slot", "query", "slot", "token", "position", "relation", "visible", "weight", "share", "share_without_sink", "chance", "relative_error"];
  const rows = attentionRows(page);
  const compared = rows[0][0].twin !== undefined;
  const body = rows.flatMap((cells, query) => cells.map((cell) => {
    const own = trace.members[step][query];
    const values = [
      own, trace.slots.text[own], cell.slot, trace.slots.text[cell.slot], trace.slots.position[cell.slot],
      cell.relation, cell.visible, cell.weight, cell.share, cell.restShare, cell.chance, trace.rows.relativeError,
    ];
    return compared ? [...values, cell.twin.share, cell.difference] : values;
  }));
  return [compared ? [...head, "share_in_other_arm", "difference"] : head, ...body];
}
