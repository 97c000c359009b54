// The sets of every arm in columns, aligned by step.

const BOX = { height: 34, gap: 6, least: 30, pad: 8, space: 10 };
const PROMPT_ENDS = { first: 3, last: 8 };

// Prompt slots that get a column; a long prompt is elided in the middle.
function promptColumns(nPrompt) {
  const all = [...Array(nPrompt).keys()];
  const { first, last } = PROMPT_ENDS;
  if (nPrompt <= first + last + 1) return all.map((slot) => ({ slots: [slot] }));
  const hidden = all.slice(first, nPrompt - last);
  return [
    ...all.slice(0, first).map((slot) => ({ slots: [slot] })),
    { hidden },
    ...all.slice(nPrompt - last).map((slot) => ({ slots: [slot] })),
  ];
}

function latticeColumns(traces) {
  const nPrompt = traces[0].members[0].length;
  const prompt = promptColumns(nPrompt).map((column) => ({ ...column, step: 0 }));
  const nSteps = Math.max(...traces.map((trace) => trace.nSteps));
  const sets = Array.from({ length: nSteps }, (_, i) => ({ step: i + 1 }));
  let x = 0;
  return [...prompt, ...sets].map((column) => {
    const needed = column.hidden
      ? [textWidth(`\u2026 ${column.hidden.length} \u2026`) + 2 * BOX.pad]
      : traces.flatMap((trace) => slotsIn(trace, column).map((slot) => boxWidth(trace, slot)));
    const width = Math.max(BOX.least, ...needed);
    const placed = { ...column, x, width };
    x += width + BOX.space + (column.step === 0 && column === prompt.at(-1) ? 12 : 0);
    return placed;
  });
}

function boxWidth(trace, slot) {
  return Math.max(textWidth(glyphs(trace.slots.text[slot])) + 2 * BOX.pad, textWidth(below(trace, slot), 10) + BOX.pad);
}

// The small line of a box.
function below(trace, slot) {
  if (slot === 0) return "sink";
  return trace.slots.step[slot] === 0 ? "" : words(trace.slots.probability[slot]);
}

function slotsIn(trace, column) {
  if (column.hidden) return [];
  if (column.slots) return column.slots;
  return trace.members[column.step] ?? [];
}

// Where the box of each slot of one arm stands.
function boxesOf(trace, columns, top) {
  const boxes = new Map();
  for (const column of columns) {
    slotsIn(trace, column).forEach((slot, level) => {
      const y = top + level * (BOX.height + BOX.gap);
      boxes.set(slot, { slot, step: column.step, query: level, x: column.x, y, width: column.width });
    });
  }
  return boxes;
}

// From the last slot of the prompt to the best living member of the last set, parent by parent.
function topPath(trace) {
  const last = trace.members[trace.nSteps];
  const alive = last.filter((slot) => trace.slots.died_at_step[slot] < 0);
  let slot = trace.nSteps === 0 ? last.at(-1) : (alive[0] ?? last[0]);
  const path = [slot];
  while (trace.slots.step[slot] > 0) {
    slot = trace.slots.parent[slot];
    path.unshift(slot);
  }
  return path;
}

function drawLattice(page) {
  const traces = page.arms.map((arm) => page.traces.get(arm)).filter(Boolean);
  const columns = latticeColumns(traces);
  const heights = traces.map((trace) => Math.max(...trace.members.slice(1).map((set) => set.length), 1));
  const left = 4;
  const titles = traces.map((trace) => 1.2 * textWidth(armTitle(page, trace)));
  const width = Math.max(columns.at(-1).x + columns.at(-1).width, 180, ...titles) + left + 8;
  const height = 34 + heights.reduce((sum, n) => sum + 26 + n * (BOX.height + BOX.gap) + 14, 0) + 34;
  const label = `Parallel sets of ${page.prompt}, ${traces.map((trace) => trace.name).join(" and ")}`;
  const svg = sheet(width, height, label);
  svg.setAttribute("role", "group");
  const body = mark("g", { transform: `translate(${left}, 30)` });
  svg.append(body);
  drawStepNumbers(body, columns, height - 66, page.step);
  let top = 0;
  traces.forEach((trace, number) => {
    body.append(mark("text", { x: 0, y: top + 14, fill: theme("ink"), "font-weight": 600 }, armTitle(page, trace)));
    const boxes = boxesOf(trace, columns, top + 24);
    trace.topPath ??= topPath(trace);
    drawLinks(body, trace, boxes);
    for (const column of columns.filter((each) => each.hidden)) {
      const y = top + 24 + BOX.height / 2 + 4;
      body.append(mark("text", { x: column.x + BOX.pad, y, fill: theme("muted") }, `\u2026 ${column.hidden.length} \u2026`));
    }
    for (const box of boxes.values()) body.append(drawBox(page, trace, box));
    top += 26 + heights[number] * (BOX.height + BOX.gap) + 14;
  });
  colourKey(body, 0, top + 2, 160, viridis, ["probability 0", "1"]);
  svg.addEventListener("keydown", (event) => walk(page, event));
  return svg;
}

// Arrow keys go from member to member of the arm chosen.
function walk(page, event) {
  const trace = page.traces.get(page.arm);
  const { step, cursor } = page;
  const moves = {
    ArrowLeft: [step - 1, cursor.query], ArrowRight: [step + 1, cursor.query],
    ArrowUp: [step, cursor.query - 1], ArrowDown: [step, cursor.query + 1],
  };
  const [to, query] = moves[event.key] ?? [];
  if (!(to >= 1 && to <= trace.nSteps) || query < 0) return;
  event.preventDefault();
  page.choose({ step: to, query: Math.min(query, trace.members[to].length - 1) });
  focusChosen();
}

function focusChosen() {
  byId("lattice").querySelector('[aria-pressed="true"]').focus({ preventScroll: true });
}

function armTitle(page, trace) {
  const { role } = page.run.arms.find((arm) => arm.name === trace.name);
  return `${trace.name}${role ? ` (${role})` : ""}, ${trace.stopped === "running" ? "not finished" : `ended by ${trace.stopped}`}`;
}

function drawStepNumbers(body, columns, depth, current) {
  const ink = theme("muted");
  const said = "prompt; slot 0 is the sink";
  const fits = textWidth(said, 11) < columns.find((each) => each.step > 0)?.x;
  body.append(mark("text", { x: 0, y: -12, fill: ink, "font-size": 11 }, fits ? said : "prompt"));
  for (const column of columns.filter((each) => each.step > 0)) {
    const chosen = column.step === current;
    if (chosen) {
      const { x, width } = column;
      body.append(mark("rect", { x: x - 4, y: -26, width: width + 8, height: depth + 26, fill: theme("chosen"), rx: 4 }));
    }
    const place = { x: column.x + column.width / 2, y: -12, "text-anchor": "middle", "font-size": 11 };
    body.append(mark("text", { ...place, fill: chosen ? theme("ink") : ink }, String(column.step)));
  }
}

// Thin lines from parent to child, a thick one along the top members.
function drawLinks(body, trace, boxes) {
  const line = (from, to, attributes) => {
    const [y1, y2] = [from.y + BOX.height / 2, to.y + BOX.height / 2];
    const [x1, x2] = [from.x + from.width, to.x];
    const bend = (x1 + x2) / 2;
    body.append(mark("path", { d: `M${x1},${y1}C${bend},${y1} ${bend},${y2} ${x2},${y2}`, fill: "none", ...attributes }));
  };
  for (const box of boxes.values()) {
    const parent = boxes.get(trace.slots.parent[box.slot]);
    if (box.step > 0 && parent) line(parent, box, { stroke: theme("rule"), "stroke-width": 1 });
  }
  const path = trace.topPath;
  for (let i = 1; i < path.length; i++) {
    const [from, to] = [boxes.get(path[i - 1]), boxes.get(path[i])];
    if (from && to) line(from, to, { stroke: theme("ink"), "stroke-width": 2.5, class: "path" });
  }
}

function drawBox(page, trace, box) {
  const { slot, step, x, y, width } = box;
  const probability = trace.slots.probability[slot];
  const isPrompt = step === 0;
  const died = trace.slots.died_at_step[slot];
  const fill = isPrompt ? theme("prompt") : viridis(probability);
  const ink = inkOn(fill);
  const onPath = trace.topPath[step] === slot && !isPrompt;
  const group = mark("g", { class: "member", "data-arm": trace.name, "data-slot": slot, "data-step": step });
  const edge = slot === 0 ? theme("accent") : onPath ? theme("ink") : "none";
  group.append(mark("rect", {
    x, y, width, height: BOX.height, rx: 5, fill, stroke: edge, "stroke-width": slot === 0 ? 3 : 2,
    "stroke-dasharray": died >= 0 ? "4 3" : null,
  }));
  const middle = x + width / 2;
  group.append(mark("text", { x: middle, y: y + 15, fill: ink, "text-anchor": "middle" }, glyphs(trace.slots.text[slot])));
  group.append(mark("text", { x: middle, y: y + 28, fill: ink, "text-anchor": "middle", "font-size": 10 }, below(trace, slot)));
  if (died >= 0) {
    const across = { x1: x + 3, x2: x + width - 3, y1: y + 11, y2: y + 11, stroke: ink, "stroke-width": 2 };
    group.append(mark("line", { ...across, class: "struck" }));
  }
  const about = describeMember(trace, box);
  group.append(mark("title", {}, about));
  if (!isPrompt) {
    const chosen = page.arm === trace.name && page.step === step && page.cursor.query === box.query;
    const isEntry = page.step === 0 && page.arm === trace.name && step === 1 && box.query === 0;
    const says = { tabindex: chosen || isEntry ? 0 : -1, role: "button", "aria-label": about, "aria-pressed": chosen };
    for (const [key, value] of Object.entries(says)) group.setAttribute(key, value);
    if (chosen) {
      const ring = { x: x - 3, y: y - 3, width: width + 6, height: BOX.height + 6, rx: 7, fill: "none" };
      group.append(mark("rect", { ...ring, stroke: theme("accent"), "stroke-width": 2 }));
    }
    group.addEventListener("click", () => {
      page.choose({ arm: trace.name, step, query: box.query });
      focusChosen();
    });
  }
  return group;
}

function describeMember(trace, box) {
  const { slots } = trace;
  const parts = [`${glyphs(slots.text[box.slot], 60)}: slot ${box.slot}, position ${exact(slots.position[box.slot])}`];
  if (box.step > 0) {
    parts.push(`step ${box.step}, rank ${slots.rank[box.slot]}, probability ${words(slots.probability[box.slot])}`);
    parts.push(`share of the readout ${words(slots.weight[box.slot])}`);
  }
  const died = slots.died_at_step[box.slot];
  if (died >= 0) parts.push(`pruned at step ${died}`);
  if (box.query === 0 && trace.dropped[box.step]?.length) {
    const left = trace.dropped[box.step].map((one) => `${glyphs(one.text)} (${words(one.probability)}, ${one.why})`);
    parts.push(`left out of this set: ${left.join(", ")}`);
  }
  return parts.join("; ");
}

function latticeRows(page) {
  const head = ["arm", "step", "slot", "token", "text", "position", "rank", "probability", "weight", "died_at_step"];
  const rows = page.arms.flatMap((arm) => {
    const { slots } = page.traces.get(arm) ?? { slots: { token: [] } };
    return slots.token.map((token, slot) => [
      arm, slots.step[slot], slot, token, slots.text[slot], slots.position[slot], slots.rank[slot],
      slots.probability[slot], slots.weight[slot], slots.died_at_step[slot],
    ]);
  });
  return [head, ...rows];
}
