// Light or dark: as the system says until the reader chooses; paper is always light.

function listenToTheme(redraw = () => {}) {
  const isDark = () => luminance(theme("surface")) < 0.2;
  const recolour = (name) => {
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
    inks.clear(); // colours are read from the style sheet once and kept
    redraw();
  };
  byId("theme").addEventListener("click", () => recolour(isDark() ? "light" : "dark"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => recolour(null));
  let onScreen = null;
  window.addEventListener("beforeprint", () => {
    onScreen = document.documentElement.dataset.theme ?? null;
    recolour("light");
  });
  window.addEventListener("afterprint", () => recolour(onScreen));
}
