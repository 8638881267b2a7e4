/* What the page does beside showing: the calculator, tables that sort, points that say which run they are, copying. */
"use strict";

(() => {
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  function made(tag, text = "", attributes = {}) {
    const element = document.createElement(tag);
    element.textContent = text;
    Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
    return element;
  }

  /* 7.24e8 reads as "724 million": tokens and FLOPs of budgets people know. */
  function words(value) {
    const names = [[1e12, "trillion"], [1e9, "billion"], [1e6, "million"]];
    const [unit, name] = names.find(([least]) => value >= least * 0.9995) || [1, ""];
    if (value >= 1e16 || !name) return "";
    return `${general(value / unit, value / unit >= 1000 ? 4 : 3)} ${name}`;
  }

  const short = (value, digits = 4) => general(value, digits).replace("e+0", "e").replace("e+", "e");
  const loops = (mu) => (mu < 1000 ? mu.toPrecision(4) : short(mu));
  const range = (ends, say) => (ends ? `${say(ends[0])} to ${say(ends[1])}` : "no interval");
  const loss = (value) => (value === null ? "-" : value.toFixed(4));

  function startCalculator() {
    const form = one("#calculator"), source = one("#fit-data");
    if (!form || !source) return;
    const { ask, fitted } = calculator(JSON.parse(source.textContent));
    const input = one("#flops"), error = one("#flops-error"), result = one("#best");
    const show = () => {
      let answer;
      try {
        answer = ask(readFlops(input.value));
      } catch (refused) {
        error.textContent = refused.message;
        input.setAttribute("aria-invalid", "true");
        result.hidden = true;
        return;
      }
      error.textContent = "";
      input.removeAttribute("aria-invalid");
      result.hidden = false;
      showAnswer(answer, fitted);
    };
    let waiting;
    input.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(show, 120);
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      show();
    });
    all("[data-times]", form).forEach((button) =>
      button.addEventListener("click", () => {
        input.value = short(Number(button.dataset.times) * fitted.flops[1]);
        show();
      }));
    form.hidden = false;
    show();
    globalThis.isoloop = { ask };
  }

  function showAnswer({ flops, best, ways, whole, notes }, fitted) {
    const say = (id, text) => (one(id).textContent = text);
    say("#best-mu", loops(best.mu));
    say("#best-mu-interval", range(best.muInterval, loops));
    say("#best-tokens", words(best.tokens) || short(best.tokens));
    say("#best-tokens-interval", range(best.tokensInterval, short));
    say("#best-loss", loss(best.loss));
    say("#best-loss-interval", best.loss === null ? "" : range(best.lossInterval, loss));
    say("#best-perplexity", best.loss === null ? "" : `perplexity ${short(Math.exp(best.loss))}`);
    const times = flops / fitted.flops[1];
    const where = times > 1.02
      ? `${short(times, 3)} times the largest measured compute: an extrapolation`
      : flops < fitted.flops[0] / 1.02 ? "below the smallest measured compute: an extrapolation" : "inside the measured compute";
    const lossThere = whole.loss === null ? "" : ` and a loss of ${loss(whole.loss)}`;
    say("#best-source", `By the ${best.name}, ${where}. With a whole number of loops: µ = ${whole.mu}, ` +
      `${short(whole.tokens)} tokens${lossThere}.`);
    one("#best-notes").replaceChildren(...notes.map((note) => made("li", `${note[0].toUpperCase()}${note.slice(1)}.`)));
    one("#best-ways").replaceChildren(...ways.map((way) => {
      const row = made("tr");
      row.append(
        made("th", way.name, { scope: "row" }),
        made("td", loops(way.mu)), made("td", range(way.muInterval, loops)),
        made("td", short(way.tokens)), made("td", range(way.tokensInterval, short)), made("td", loss(way.loss)));
      return row;
    }));
  }

  function startSorting() {
    all("table.sorts").forEach((table) => {
      const heads = all("thead th", table), body = one("tbody", table);
      heads.forEach((head, column) => {
        const button = made("button", head.textContent, { type: "button", title: "sort by this column" });
        head.replaceChildren(button);
        head.setAttribute("aria-sort", "none");
        button.addEventListener("click", () => {
          const down = head.getAttribute("aria-sort") === "ascending";
          heads.forEach((other) => other.setAttribute("aria-sort", "none"));
          head.setAttribute("aria-sort", down ? "descending" : "ascending");
          body.replaceChildren(...sorted([...body.rows], column, down));
        });
      });
    });
  }

  /* By number where there are numbers, else by text; what is missing stays last either way. */
  function sorted(rows, column, down) {
    const key = (row) => {
      const cell = row.cells[column], text = cell.textContent.trim();
      if ("value" in cell.dataset) return Number(cell.dataset.value);
      return text === "-" ? null : text;
    };
    return rows.map((row) => [key(row), row]).sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      return down ? -order : order;
    }).map(([, row]) => row);
  }

  function startPoints() {
    const card = one("#card"), table = one("#runs-table");
    if (!card || !table) return;
    const rowOf = new Map(all("tbody tr", table).map((row) => [row.dataset.run, row]));
    const heads = all("thead th", table);
    const about = (run) => heads.flatMap((head, i) =>
      "card" in head.dataset && rowOf.has(run) ? [[head.textContent, rowOf.get(run).cells[i].textContent]] : []);
    let lit = null, pinned = false;

    function light(run) {
      all(".ring").forEach((ring) => ring.remove());
      all("tr.lit").forEach((row) => row.classList.remove("lit"));
      if (run === null) return;
      if (rowOf.has(run)) rowOf.get(run).classList.add("lit");
      all("svg use[data-run]").filter((point) => point.dataset.run === run).forEach((point) => {
        const ring = document.createElementNS(point.namespaceURI, "circle");
        const shape = { class: "ring", r: 8, cx: point.getAttribute("x"), cy: point.getAttribute("y") };
        Object.entries(shape).forEach(([name, value]) => ring.setAttribute(name, value));
        point.ownerSVGElement.append(ring);
      });
    }

    function show(point, pin = false) {
      pinned = pin && point !== null;
      if (point === lit) return;
      lit = point;
      light(point ? point.dataset.run : null);
      card.hidden = !point;
      if (!point) return;
      const list = made("dl");
      about(point.dataset.run).forEach(([label, text]) => list.append(made("dt", label), made("dd", text)));
      const link = made("a", "its row in the table", { href: `#${rowOf.get(point.dataset.run)?.id || "runs"}` });
      card.replaceChildren(list, link);
      place();
    }

    function place() {
      if (!lit) return;
      const at = lit.getBoundingClientRect();
      card.hidden = at.bottom < 0 || at.top > innerHeight;
      if (card.hidden) return;
      const own = card.getBoundingClientRect();
      const left = at.left + at.width / 2 + (at.left > innerWidth / 2 ? -own.width - 14 : 14);
      card.style.left = `${Math.max(4, Math.min(left, document.documentElement.clientWidth - own.width - 4))}px`;
      const top = at.bottom + 10 + own.height > innerHeight ? at.top - own.height - 10 : at.bottom + 10;
      card.style.top = `${Math.max(4, top)}px`;
    }

    function nearest(points, event, within) {
      const away = (point) => {
        const box = point.getBoundingClientRect();
        return Math.hypot(box.left + box.width / 2 - event.clientX, box.top + box.height / 2 - event.clientY);
      };
      const found = points.map((point) => [away(point), point]).sort(([a], [b]) => a - b)[0];
      return found && found[0] <= within ? found[1] : null;
    }

    all("svg.plot").forEach((plot) => {
      const points = all("use[data-run]", plot);
      points.forEach((point, i) => {
        one("title", point)?.remove();
        point.setAttribute("role", "img");
        point.setAttribute("aria-label", about(point.dataset.run).map((pair) => pair.join(" ")).join(", "));
        // One stop for the tabulator key a figure; the arrow keys go from point to point.
        point.setAttribute("tabindex", i ? "-1" : "0");
        point.addEventListener("focus", () => show(point, true));
        point.addEventListener("keydown", (event) => {
          const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
          if (!step) return;
          event.preventDefault();
          points[(i + step + points.length) % points.length].focus();
        });
      });
      plot.addEventListener("pointermove", (event) => {
        if (event.pointerType !== "touch" && !pinned) show(nearest(points, event, 14));
      });
      plot.addEventListener("click", (event) => show(nearest(points, event, 26), true));
      plot.addEventListener("pointerleave", () => pinned || show(null));
      plot.addEventListener("focusout", (event) => {
        if (event.relatedTarget !== null && !card.contains(event.relatedTarget)) show(null);
      });
    });
    document.addEventListener("keydown", (event) => event.key === "Escape" && show(null));
    document.addEventListener("scroll", place, { passive: true, capture: true });
    table.addEventListener("pointerover", (event) => {
      const row = event.target.closest("tbody tr");
      if (!lit) light(row ? row.dataset.run : null);
    });
    table.addEventListener("pointerleave", () => !lit && light(null));
  }

  function startCopying() {
    all("pre.copies").forEach((text) => {
      const button = made("button", "copy", { type: "button", class: "copy" });
      button.addEventListener("click", async () => {
        getSelection().selectAllChildren(text);
        try {
          await navigator.clipboard.writeText(text.textContent);
          button.textContent = "copied";
        } catch {
          button.textContent = "selected: copy it with the keyboard";
        }
      });
      const box = made("div", "", { class: "copy-box" });
      text.before(box);
      box.append(text, button);
    });
  }

  // Paper can't be unfolded.
  addEventListener("beforeprint", () => all("details").forEach((part) => (part.open = true)));
  startCalculator();
  startSorting();
  startPoints();
  startCopying();
})();
