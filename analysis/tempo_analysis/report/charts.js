// Curves with their intervals, and stacked bars; what stands where came from charts.py.

const PLOT = { width: 400, height: 230, left: 58, right: 12, top: 26, bottom: 42, key: 22 };

function drawChart(chart) {
  const n = chart.panels.length;
  const names = [...new Set(chart.panels.flatMap((panel) => panel.series.map((one) => one.name)))];
  const keys = placedKeys(keysOf(chart, names), n * PLOT.width);
  const width = n * PLOT.width;
  const height = PLOT.height + keys.height + 8;
  const svg = sheet(width, height, chart.title);
  chart.panels.forEach((panel, number) => {
    const plot = mark("g", { transform: `translate(${number * PLOT.width}, 0)` });
    const scale = scaleOf(chart, chart.sharesY ? chart.panels : [panel]);
    drawFrame(plot, chart, panel, scale, number === 0);
    if (chart.kind === "stack") drawStack(plot, panel, scale, names);
    else panel.series.forEach((one) => drawCurve(plot, one, scale, names.indexOf(one.name)));
    svg.append(plot);
  });
  drawKeys(svg, chart, keys);
  return svg;
}

// What each line is called, and how it looks.
function keysOf(chart, names) {
  const series = chart.panels.flatMap((panel) => panel.series);
  const curves = names.map((name, number) => {
    const one = series.find((each) => each.name === name);
    const label = one.isNull && name !== "null" ? `${name} (null)` : name;
    return { label, ...lookOf(one, number), thick: chart.kind === "stack" };
  });
  return [...curves, { label: chart.panels[0].levelName, stroke: theme("muted"), dash: "2 3", thick: false }];
}

function finite(values) {
  return values.filter((value) => value !== null && Number.isFinite(value));
}

function limitsOf(chart, panels) {
  const all = panels.flatMap((panel) => {
    if (chart.kind === "stack") return [panel.level, ...totals(panel).flatMap(({ low, high }) => [low, high])];
    return [panel.level, ...panel.series.flatMap((one) => finite([...one.estimate, ...one.low, ...one.high]))];
  });
  const kept = chart.log ? all.filter((value) => value > 0) : all;
  return [Math.min(...kept), Math.max(...kept)];
}

function scaleOf(chart, panels) {
  const toAxis = chart.log ? Math.log : (value) => value;
  let [low, high] = limitsOf(chart, panels).map(toAxis);
  const room = Math.max(high - low, 1e-6) * 0.06;
  [low, high] = [low - room, high + room];
  const xs = chart.panels.flatMap((panel) => panel.series.flatMap((one) => one.x));
  const [first, last] = [Math.min(...xs), Math.max(...xs)];
  const across = PLOT.width - PLOT.left - PLOT.right - 20;
  const down = PLOT.height - PLOT.top - PLOT.bottom;
  return {
    x: (value) => PLOT.left + 10 + (across * (value - first)) / Math.max(last - first, 1),
    y: (value) => PLOT.top + down * (1 - (toAxis(value) - low) / (high - low)),
    xTicks: ticks(first, last).filter(Number.isInteger),
    yTicks: chart.log ? logTicks(Math.exp(low), Math.exp(high)) : ticks(low, high),
    gap: across / Math.max(last - first, 1),
  };
}

function drawFrame(plot, chart, panel, scale, isFirst) {
  const [ink, faint] = [theme("ink"), theme("muted")];
  const bottom = PLOT.height - PLOT.bottom;
  const right = PLOT.width - PLOT.right;
  plot.append(mark("text", { x: PLOT.left, y: 15, fill: ink, "font-weight": 600 }, panel.title));
  for (const value of scale.yTicks) {
    const y = scale.y(value);
    plot.append(mark("line", { x1: PLOT.left, x2: right, y1: y, y2: y, stroke: theme("rule"), "stroke-width": 0.6 }));
    plot.append(mark("text", { x: PLOT.left - 6, y: y + 4, fill: faint, "text-anchor": "end", "font-size": 11 }, words(value)));
  }
  for (const value of scale.xTicks) {
    plot.append(mark("text", { x: scale.x(value), y: bottom + 15, fill: faint, "text-anchor": "middle", "font-size": 11 }, words(value)));
  }
  const same = scale.y(panel.level);
  plot.append(mark("line", { x1: PLOT.left, x2: right, y1: same, y2: same, stroke: faint, "stroke-dasharray": "2 3", "stroke-width": 1.5 }));
  plot.append(mark("text", { x: (PLOT.left + right) / 2, y: bottom + 34, fill: ink, "text-anchor": "middle" }, chart.x));
  if (isFirst) {
    const turned = `translate(13, ${(PLOT.top + bottom) / 2}) rotate(-90)`;
    plot.append(mark("text", { transform: turned, fill: ink, "text-anchor": "middle" }, chart.y));
  }
}

// A null is drawn in ink, dashed; the others in their colours, with dashes of their own.
function lookOf(one, number) {
  if (one.isNull) return { stroke: theme("ink"), dash: "6 4" };
  return { stroke: seriesColour(number), dash: DASHES[number % DASHES.length] };
}

function drawCurve(plot, one, scale, number) {
  const look = lookOf(one, number);
  const points = one.x.map((x, i) => ({ x, y: one.estimate[i], low: one.low[i], high: one.high[i], n: one.n[i] }))
    .filter((point) => point.y !== null && Number.isFinite(scale.y(point.y)));
  const banded = points.filter((point) => point.low !== null && point.high !== null);
  if (banded.length > 1) {
    const path = [...banded.map((p) => [p.x, p.high]), ...banded.toReversed().map((p) => [p.x, p.low])];
    const d = path.map(([x, y], i) => `${i ? "L" : "M"}${scale.x(x)},${scale.y(y)}`).join("");
    plot.append(mark("path", { d: `${d}Z`, fill: look.stroke, "fill-opacity": 0.16 }));
  }
  const d = points.map((p, i) => `${i ? "L" : "M"}${scale.x(p.x)},${scale.y(p.y)}`).join("");
  plot.append(mark("path", { d, fill: "none", stroke: look.stroke, "stroke-width": 2, "stroke-dasharray": look.dash }));
  for (const p of points) {
    const dot = mark("circle", { cx: scale.x(p.x), cy: scale.y(p.y), r: 3, fill: look.stroke, class: "point" });
    const limits = p.low === null ? "too few prompts for an interval" : `95 % interval ${words(p.low)} to ${words(p.high)}`;
    dot.append(mark("title", {}, `${one.name}, ${p.x}: ${words(p.y)}; ${limits}; ${p.n} prompts`));
    plot.append(dot);
  }
}

// For each x how far the positive and the negative parts reach, and their sum.
function totals(panel) {
  return panel.series[0].x.map((x, i) => {
    const parts = panel.series.map((one) => one.estimate[one.x.indexOf(x)] ?? 0);
    const sum = (sign) => parts.filter((part) => Math.sign(part) === sign).reduce((a, b) => a + b, 0);
    return { x, low: sum(-1), high: sum(1), total: parts.reduce((a, b) => a + b, 0) };
  });
}

function drawStack(plot, panel, scale, names) {
  const width = Math.min(18, Math.max(2, scale.gap * 0.7));
  for (const { x, total } of totals(panel)) {
    const reach = { "-1": 0, 1: 0 };
    for (const one of panel.series) {
      const at = one.x.indexOf(x);
      const part = one.estimate[at];
      if (part === null || part === undefined) continue;
      const from = reach[Math.sign(part) || 1];
      const [y1, y2] = [scale.y(from), scale.y(from + part)];
      reach[Math.sign(part) || 1] = from + part;
      const bar = mark("rect", {
        x: scale.x(x) - width / 2, y: Math.min(y1, y2), width, height: Math.abs(y1 - y2), class: "bar",
        fill: seriesColour(names.indexOf(one.name)),
      });
      const limits = one.low[at] === null ? "too few prompts for an interval" : `95 % interval ${words(one.low[at])} to ${words(one.high[at])}`;
      bar.append(mark("title", {}, `${one.name}, ${x}: ${words(part)}; ${limits}; ${one.n[at]} prompts`));
      plot.append(bar);
    }
    const sum = mark("path", {
      d: `M${scale.x(x) - width / 2 - 1},${scale.y(total)}h${width + 2}`, stroke: theme("ink"), "stroke-width": 2.5,
    });
    sum.append(mark("title", {}, `total, ${x}: ${words(total)}`));
    plot.append(sum);
  }
}

// Keys below the plot, in as many lines as they need.
function placedKeys(keys, width) {
  let [x, y] = [PLOT.left, 0];
  const places = keys.map((key) => {
    const needed = textWidth(key.label) + 56;
    if (x + needed > width && x > PLOT.left) [x, y] = [PLOT.left, y + PLOT.key];
    const place = { ...key, x, y };
    x += needed;
    return place;
  });
  return { places, height: y + PLOT.key };
}

function drawKeys(svg, chart, { places }) {
  for (const { label, stroke, dash, thick, x, y } of places) {
    const middle = PLOT.height + y + 8;
    const line = { x1: x, x2: x + 26, y1: middle, y2: middle, stroke };
    svg.append(mark("line", { ...line, "stroke-width": thick ? 10 : 2, "stroke-dasharray": thick ? null : dash }));
    svg.append(mark("text", { x: x + 32, y: middle + 4, fill: theme("ink") }, label));
  }
}

function chartRows(chart) {
  const head = ["panel", "series", chart.x, "estimate", "low", "high", "prompts"];
  const rows = chart.panels.flatMap((panel) => panel.series.flatMap((one) =>
    one.x.map((x, i) => [panel.title, one.name, x, one.estimate[i], one.low[i], one.high[i], one.n[i]])));
  return [head, ...rows];
}
