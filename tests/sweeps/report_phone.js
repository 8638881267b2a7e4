// How the page looks on a phone: the body of a function that in_page (browser.py) runs.
const style = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
document.querySelectorAll("details").forEach((one) => (one.open = true));
const wide = [...document.querySelectorAll("body *")].filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5)
  .filter((one) => !one.closest(".scroll, .figure, pre"));
return {
  width: [document.documentElement.scrollWidth, innerWidth, wide.map((one) => one.outerHTML.slice(0, 80))],
  colours: [style("body", "backgroundColor"), style("body", "color")],
  letters: document.querySelector("svg text") && [style("svg text", "fill"), style("svg text", "fontSize")],
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
};
