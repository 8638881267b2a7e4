// How the page looks on a phone: the body of a function that in_page (browser.py) runs.
const style = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
document.querySelectorAll("details").forEach((one) => (one.open = true));
const wide = [...document.querySelectorAll("body *")].filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5)
  .filter((one) => !one.closest(".scroll, .figure, pre"));
return {
  width: [document.documentElement.scrollWidth, innerWidth, wide.map((one) => one.outerHTML.slice(0, 80))],
  colours: [style("body", "backgroundColor"), style("body", "color")],
  letters: document.querySelector("svg text") && style("svg text", "fill"),
  // How large a letter of the smallest size is on the screen, and whether a figure fits in its box.
  plots: [...document.querySelectorAll("svg.plot")].filter((plot) => plot.getBoundingClientRect().width > 0).map((plot) => ({
    fits: plot.getBoundingClientRect().right <= plot.parentElement.getBoundingClientRect().right + 0.5,
    enlarged: plot.getBoundingClientRect().width / (plot.viewBox.baseVal.width * 4 / 3),
  })),
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
};
