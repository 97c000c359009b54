// Where each role lives, from the first layer to the last, with intervals.

const DEPTH = { left: 190, right: 20, top: 14, row: 30, width: 700, foot: 66 };

function depthX(share) {
  return DEPTH.left + share * (DEPTH.width - DEPTH.left - DEPTH.right);
}

function drawDepths(page) {
  const rows = page.run.depths;
  const bottom = DEPTH.top + rows.length * DEPTH.row;
  const svg = sheet(DEPTH.width, bottom + DEPTH.foot, "Depth of every role");
  const [ink, faint, rule] = [theme("ink"), theme("muted"), theme("rule")];
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    const x = depthX(share);
    svg.append(mark("line", { x1: x, x2: x, y1: DEPTH.top, y2: bottom, stroke: rule, "stroke-width": 0.6 }));
    svg.append(mark("text", { x, y: bottom + 16, fill: faint, "text-anchor": "middle", "font-size": 11 }, words(share)));
  }
  svg.append(mark("text", { x: depthX(0.5), y: bottom + 34, fill: ink, "text-anchor": "middle" }, "depth (0: first layer, 1: last)"));
  rows.forEach((row, number) => drawDepth(svg, row, DEPTH.top + (number + 0.5) * DEPTH.row));
  drawDepthKeys(svg, bottom + 54);
  return svg;
}

// A role that no head holds is drawn hollow: its depth is that of noise.
function drawDepth(svg, row, y) {
  const name = `${row.role} (${row.held})`;
  svg.append(mark("text", { x: DEPTH.left - 12, y: y + 4, fill: theme(row.held ? "ink" : "muted"), "text-anchor": "end" }, name));
  drawDepthMark(svg, row, y - 5, { found: row.centroid, kind: "centroid", colour: seriesColour(0) });
  drawDepthMark(svg, row, y + 6, { found: row.median, kind: "median of the best five", colour: seriesColour(1) });
}

function drawDepthMark(svg, row, y, { found, kind, colour }) {
  if (found.estimate === null) return;
  const x = depthX(found.estimate);
  const known = found.low !== null && found.high !== null;
  if (known) svg.append(mark("line", { x1: depthX(found.low), x2: depthX(found.high), y1: y, y2: y, stroke: colour, "stroke-width": 2 }));
  const shape = depthShape(kind, x, y, row.held ? colour : theme("surface"), colour);
  const limits = known ? `95 % interval ${words(found.low)} to ${words(found.high)}` : found.method;
  shape.append(mark("title", {}, `${row.role}, ${kind}: ${words(found.estimate)}; ${limits}`));
  svg.append(shape);
}

function depthShape(kind, x, y, fill, stroke) {
  const ink = { fill, stroke, "stroke-width": 1.5, class: "depth-mark" };
  if (kind === "centroid") return mark("circle", { cx: x, cy: y, r: 4, ...ink });
  return mark("path", { d: `M${x - 5},${y}l5,-5l5,5l-5,5Z`, ...ink });
}

function drawDepthKeys(svg, y) {
  const keys = [["centroid", "centroid of the score above chance", 0], ["median", "median of the best five heads", 1]];
  let x = 20;
  for (const [kind, label, number] of keys) {
    svg.append(depthShape(kind, x, y, seriesColour(number), seriesColour(number)));
    svg.append(mark("text", { x: x + 12, y: y + 4, fill: theme("ink") }, label));
    x += textWidth(label) + 44;
  }
  svg.append(mark("text", { x, y: y + 4, fill: theme("ink") }, "hollow: no head holds the role"));
}

function depthRows(page) {
  const rows = page.run.depths.flatMap((row) => [["centroid", row.centroid], ["median", row.median]].map(
    ([kind, found]) => [row.role, row.held, kind, found.estimate, found.low, found.high, found.n, found.method]));
  return [["role", "assigned", "measure", "depth", "low", "high", "n", "method"], ...rows];
}
