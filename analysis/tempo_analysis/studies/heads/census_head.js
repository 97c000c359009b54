// Everything known of one head: its roles, how it spreads its rows, what silencing it costs.

const LEAST_SHARE = 0.01;
const FEWEST_OFFSETS = 16;
const LEAST_Q = 1e-30; // the bytes of the map hold little below

function headPlace(page) {
  const { row, column } = chosenHead(page);
  return row * page.run.axes.heads.length + column;
}

function headName(page) {
  return `L${page.layer}H${page.head}`;
}

function valuesAt(map, place) {
  const names = ["value", "low", "high", "chance", "null", "q", "percentile", "n", "assigned"].filter((name) => map[name]);
  return Object.fromEntries(names.map((name) => [name, floatsOf(map[name])[place]]));
}

function showHead(page) {
  const place = headPlace(page);
  const all = page.run.maps[page.arm].map((map) => ({ map, at: valuesAt(map, place) }));
  const roles = all.filter(({ map }) => map.assigned);
  const held = roles.filter(({ at }) => at.assigned).map(({ map }) => map.label);
  const kv = Math.floor(page.head / page.run.queriesPerKvHead);
  byId("head-title").textContent = `${headName(page)}, KV head ${kv}`;
  byId("held").textContent = held.length ? `Holds: ${held.join(", ")}.` : `Holds none of the ${roles.length} roles.`;
  byId("loss").textContent = lossSaid(page);
  const measures = all.filter(({ map, at }) => !map.assigned && !Number.isNaN(at.value));
  byId("head-table").replaceChildren(...[roleTable(roles), measureTable(measures)].filter((table) => table.rows.length > 1));
  byId("profile").hidden = page.run.profiles === null;
  if (page.run.profiles) byId("profile").querySelector(".scroll").replaceChildren(drawProfile(page));
}

function lossSaid(page) {
  const loss = page.run.losses[headName(page)];
  if (!loss) return "It was not silenced.";
  const { replacement, texts, tokens } = page.run.silencedBy;
  const limits = loss.low === null ? loss.method : `95 % interval ${words(loss.low)} to ${words(loss.high)}`;
  return `Silenced (${replacement}), the loss changes by ${words(loss.estimate)} nats per token (${limits}; ${texts} texts of ${tokens} tokens).`;
}

function tableOf(headings, rows) {
  const cell = (text, number, tag = "td", more = {}) => node(tag, { ...(number > 0 && { class: "number" }), ...more }, text);
  const top = node("tr", {}, ...headings.map((text, number) => cell(text, number, "th", { scope: "col" })));
  const body = rows.map(({ texts, held }) => node("tr", held ? { class: "held" } : {}, ...texts.map((text, number) =>
    (number ? cell(text, number) : cell(text, 0, "th", { scope: "row" })))));
  return node("table", {}, node("thead", {}, top), node("tbody", {}, ...body));
}

function roleTable(roles) {
  const headings = ["role", "score", "95 % interval", "chance", "null p99", "q", "percentile", "holds it"];
  const rows = roles.map(({ map, at }) => {
    const limits = Number.isNaN(at.low) ? words(NaN) : `${words(at.low)} to ${words(at.high)}`;
    const [chance, null99, percentile] = [at.chance, at.null, at.percentile].map((value) => words(value));
    const q = at.q < LEAST_Q ? `< ${words(LEAST_Q)}` : words(at.q);
    return { texts: [map.label, words(at.value), limits, chance, null99, q, percentile, at.assigned ? "yes" : "no"], held: at.assigned };
  });
  return tableOf(headings, rows);
}

function measureTable(measures) {
  const rows = measures.map(({ map, at }) => ({ texts: [map.label, words(at.value), words(at.chance)] }));
  return tableOf(["measure", "value", "even rows"], rows);
}

function headTableRows(page) {
  const place = headPlace(page);
  const names = ["value", "low", "high", "chance", "null", "q", "percentile", "n", "assigned"];
  const rows = page.run.maps[page.arm].map((map) => {
    const at = valuesAt(map, place);
    return [headName(page), map.group, map.label, ...names.map((name) => at[name])];
  });
  const titles = names.map((name) => (name === "null" ? "null_p99" : name));
  return [["head", "group", "measure", ...titles], ...rows];
}

// The profile as far as it holds anything; the CSV has it whole.
function profileChart(page, whole = false) {
  const { offsets, profile, even, n } = page.run.profiles;
  const from = headPlace(page) * offsets;
  const [own, chance] = [profile, even].map((coded) => [...floatsOf(coded).slice(from, from + offsets)]);
  const last = own.findLastIndex((value) => value >= LEAST_SHARE);
  const shown = whole ? offsets : Math.min(offsets, Math.max(last + 2, FEWEST_OFFSETS));
  const series = [["this head", own, false], ["even rows", chance, true]].map(([name, values, isNull]) => {
    const x = values.map((_, offset) => offset).filter((offset) => offset < shown && Number.isFinite(values[offset]));
    return { name, isNull, x, estimate: x.map((offset) => values[offset]), low: x.map(() => null), high: x.map(() => null), n: x.map(() => n) };
  });
  return {
    title: `Offset profile of ${headName(page)}`, x: "tokens back", y: "share without slot 0", log: false, kind: "lines",
    panels: [{ title: headName(page), series, level: 0, levelName: "nothing" }], counted: "sequences", spread: "",
  };
}

function drawProfile(page) {
  const chart = profileChart(page);
  return reworded(drawChart(chart), chart);
}
