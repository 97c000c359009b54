// Ink: SVG elements, colours of the theme, scales and numbers in words.

const SVG = "http://www.w3.org/2000/svg";

function mark(name, attributes = {}, text = null) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  if (text !== null) element.textContent = text;
  return element;
}

function node(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function byId(id) {
  return document.getElementById(id);
}

function sheet(width, height, label) {
  const svg = mark("svg", {
    width, height, viewBox: `0 0 ${width} ${height}`, xmlns: SVG, "font-size": 12,
    "font-family": "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif", role: "img",
    "aria-label": label,
  });
  svg.append(mark("title", {}, label));
  return svg;
}

// Colours stand in page.css once, for light and dark; an SVG that is saved needs their values.
const inks = new Map();

function theme(name) {
  if (!inks.has(name)) {
    const probe = byId("probe");
    probe.style.color = `var(--${name})`;
    inks.set(name, getComputedStyle(probe).color);
  }
  return inks.get(name);
}

function numbersOf(colour) {
  return colour.match(/[\d.]+/g).slice(0, 3).map(Number);
}

function mix(from, to, share) {
  const [a, b] = [numbersOf(from), numbersOf(to)];
  const parts = a.map((value, i) => Math.round(value + (b[i] - value) * share));
  return `rgb(${parts.join(", ")})`;
}

const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"]
  .map((hex) => `rgb(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(", ")})`);

function viridis(share) {
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return mix(VIRIDIS[low], VIRIDIS[low + 1], place - low);
}

function luminance(colour) {
  const [r, g, b] = numbersOf(colour).map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// Black or white, whichever reads better on a colour; the worse case of the two is 4.58 to 1.
function inkOn(colour) {
  return luminance(colour) > 0.179 ? "rgb(0, 0, 0)" : "rgb(255, 255, 255)";
}

// From nothing (the surface) to all, for shares; a square root shows small shares.
function shareColour(share) {
  return mix(theme("surface"), theme("full"), Math.sqrt(Math.min(Math.max(share, 0), 1)));
}

// Below and above a middle: -1 to 1.
function signedColour(value) {
  const side = value < 0 ? "below" : "above";
  return mix(theme("surface"), theme(side), Math.min(Math.abs(value), 1) ** 0.7);
}

const SERIES = ["series-1", "series-2", "series-3", "series-4", "series-5", "series-6"];

function seriesColour(index) {
  return theme(SERIES[index % SERIES.length]);
}

const DASHES = [null, "7 3", "2 3", "9 3 2 3", "4 2", "1 2"];

// Three significant digits unless said; a dash where there are no data.
function words(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "\u2013";
  if (!Number.isFinite(value)) return value > 0 ? "\u221e" : "\u2212\u221e";
  const size = Math.abs(value);
  if (size > 0 && (size < 1e-4 || size >= 1e5)) return value.toExponential(digits - 1).replace("-", "\u2212");
  return String(Number(value.toPrecision(digits))).replace("-", "\u2212");
}

// Whole, as float32 holds it: position 1234 is not 1230, and 12.01 is not 12.
function exact(value) {
  return String(Number(value.toPrecision(7))).replace("-", "\u2212");
}

const GLYPHS = { " ": "\u00b7", "\u00b7": "\\u{b7}", "\n": "\u21b5", "\t": "\u21e5" };
const HIDDEN = /^(?:\p{C}|\p{Z}|\p{Default_Ignorable_Code_Point}|\u2800)$/u;

// A token on one line: spaces, newlines and tabs shown, whatever is invisible escaped.
function glyphs(text, longest = 14) {
  const shown = [...text].map((character, place) => {
    if (GLYPHS[character]) return GLYPHS[character];
    const escaped = `\\u{${character.codePointAt(0).toString(16)}}`;
    if (HIDDEN.test(character)) return escaped;
    return place === 0 && /^\p{M}$/u.test(character) ? escaped : character;
  });
  if (shown.length === 0) return "\u2205";
  return shown.length <= longest ? shown.join("") : `${shown.slice(0, longest - 1).join("")}\u2026`;
}

const ruler = document.createElement("canvas").getContext("2d");

function textWidth(text, size = 12) {
  ruler.font = `${size}px system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif`;
  return ruler.measureText(text).width;
}

// Round numbers for an axis between two limits.
function ticks(low, high, count = 5) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((each) => each >= rough);
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const n of [1, 2, 5]) found.push(n * 10 ** power);
  }
  return found.filter((each) => each >= low / 1.0001 && each <= high * 1.0001);
}

// A legend for a colour scale: a strip from one end to the other with words below.
function colourKey(svg, x, y, width, colourAt, ends) {
  const steps = 40;
  for (let i = 0; i < steps; i++) {
    const fill = colourAt(i / (steps - 1));
    svg.append(mark("rect", { x: x + (i * width) / steps, y, width: width / steps + 0.5, height: 8, fill }));
  }
  const ink = theme("muted");
  svg.append(mark("text", { x, y: y + 20, fill: ink, "font-size": 11 }, ends[0]));
  svg.append(mark("text", { x: x + width, y: y + 20, fill: ink, "font-size": 11, "text-anchor": "end" }, ends[1]));
}
