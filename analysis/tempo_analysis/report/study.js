// The plain page: every table and figure can be saved, prompts open by a link or all at once.

const files = JSON.parse(byId("files").textContent);

function figureButtons(figure) {
  const name = figure.dataset.name;
  const bar = node("div", { class: "save" });
  for (const [kind, save] of [["SVG", saveSvg], ["PNG", savePng]]) {
    const label = `Save ${name.replaceAll("_", " ")} as ${kind}`;
    const button = node("button", { type: "button", "aria-label": label }, kind);
    button.addEventListener("click", () => save(name, figure.querySelector("svg")));
    bar.append(button);
  }
  return bar;
}

// A button that opens or closes many folds at once.
function unfoldButton(label, selector) {
  const button = node("button", { type: "button", "aria-pressed": "false" }, label);
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(open));
    for (const fold of document.querySelectorAll(selector)) fold.open = open;
  });
  return button;
}

function addSaving() {
  for (const figure of document.querySelectorAll("figure[data-name]")) figure.append(figureButtons(figure));
  for (const table of document.querySelectorAll("table[data-name]")) {
    const name = table.dataset.name;
    table.parentElement.after(saveButtons(`table_${name}`, null, () => files[name]));
  }
}

function addSheets() {
  const bar = document.querySelector(".unfold");
  if (!bar) return;
  bar.append(unfoldButton("Open every prompt", "details.prompt"), unfoldButton("Show whole lists", ".moved details"));
  for (const [name, label] of [["predictions", "Predictions"], ["prediction_shifts", "Every shift"]]) {
    const save = saveButtons(name, null, () => files[name]);
    save.prepend(node("span", { class: "note" }, `${label}:`));
    bar.append(save);
  }
}

function reveal() {
  const target = byId(location.hash.slice(1));
  if (!(target instanceof HTMLDetailsElement)) return;
  target.open = true;
  target.scrollIntoView({ behavior: "instant" });
}

addSaving();
addSheets();
listenToTheme();
window.addEventListener("hashchange", reveal);
reveal();
