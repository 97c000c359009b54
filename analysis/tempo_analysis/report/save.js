// Every figure as SVG and PNG, every table as CSV, made here from what is shown.

function download(name, blob) {
  const link = node("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function svgText(svg) {
  const copy = svg.cloneNode(true);
  const [, , width, height] = svg.getAttribute("viewBox").split(" ");
  copy.querySelector("title").after(mark("rect", { width, height, fill: theme("surface") }));
  return new XMLSerializer().serializeToString(copy);
}

function saveSvg(name, svg) {
  download(`${name}.svg`, new Blob([svgText(svg)], { type: "image/svg+xml" }));
}

const MOST_PIXELS = 16384;

async function savePng(name, svg) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svgText(svg))}`;
  await image.decode();
  const canvas = node("canvas");
  const [width, height] = [svg.width.baseVal.value, svg.height.baseVal.value];
  const scale = Math.min(2, MOST_PIXELS / Math.max(width, height));
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((blob) => download(`${name}.png`, blob));
}

// Text that a spreadsheet would take for a formula gets an apostrophe.
function csvCell(value) {
  const isNumber = typeof value === "number";
  const known = isNumber ? Number.isFinite(value) : value !== null && value !== undefined;
  let text = known ? String(value) : "";
  if (!isNumber && /^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(text)) text = `'${text}`;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csvText(rows) {
  return rows.map((row) => `${row.map(csvCell).join(",")}\r\n`).join("");
}

// Buttons beside a figure or a table; `figure` gives the SVG as it is now, `csv` its numbers, `shows`
// what of it is shown, for the name of the file.
function saveButtons(name, figure, csv, shows = () => []) {
  const bar = node("div", { class: "save" });
  const add = (kind, action) => {
    const label = `Save ${name.replaceAll("_", " ")} as ${kind}`;
    const button = node("button", { type: "button", "aria-label": label }, kind);
    button.addEventListener("click", action);
    bar.append(button);
  };
  const file = () => [name, ...shows()].join("_").replace(/[^\w.@-]+/g, "-");
  if (figure) {
    add("SVG", () => saveSvg(file(), figure()));
    add("PNG", () => savePng(file(), figure()));
  }
  add("CSV", () => download(`${file()}.csv`, new Blob([csv()], { type: "text/csv" })));
  return bar;
}
