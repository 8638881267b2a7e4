/* The page's behaviour: the calculator, sortable tables, points that show their run, and buttons that copy. */
"use strict";

(() => {
  const find = (selector, within = document) => within.querySelector(selector);
  const findAll = (selector, within = document) => [...within.querySelectorAll(selector)];

  function newElement(tag, text = "", attributes = {}) {
    const element = document.createElement(tag);
    element.textContent = text;
    Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
    return element;
  }

  /* 7.24e8 reads as "724 million". */
  function inWords(value) {
    const units = [[1e12, "trillion"], [1e9, "billion"], [1e6, "million"]];
    const unit = units.find(([size]) => value >= size * 0.9995);
    if (value >= 1e16 || !unit) return short(value);
    return `${general(value / unit[0], value / unit[0] >= 1000 ? 4 : 3)} ${unit[1]}`;
  }

  const short = (value, digits = 4) => general(value, digits).replace("e+0", "e").replace("e+", "e");
  const loops = (mu) => (mu > 0 && mu < 1000 ? mu.toPrecision(4) : short(mu));
  const loss = (value) => (value === null ? "-" : value < 1000 ? value.toFixed(4) : short(value));
  const extra = (value) => (value === null ? "-" : `${value < 0 ? "−" : "+"}${short(Math.abs(value), 2)}`);
  const range = (ends, format) => (ends && !ends.some(Number.isNaN) ? `${format(ends[0])} to ${format(ends[1])}` : "no interval");

  function startCalculator() {
    const form = find("#calculator"), table = find("#predictions");
    if (!form || !table) return;
    const predictions = JSON.parse(table.textContent), predict = calculator(predictions);
    const looped = predictions.axis === "mean_recurrence";
    const best = looped ? { inWords: loops, short: loops } : { inWords, short };
    const input = find("#flops"), error = find("#flops-error");
    const show = () => {
      let answer = null, message = "";
      try {
        answer = predict(readFlops(input.value));
      } catch (refused) {
        message = refused.message;
      }
      error.textContent = message;
      input.setAttribute("aria-invalid", !answer);
      find("#best").hidden = !answer;
      if (answer) showAnswer(answer, best);
    };
    let timer;
    input.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(show, 120);
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      show();
    });
    findAll("[data-times]", form).forEach((button) => button.addEventListener("click", () => {
      input.value = short(Number(button.dataset.times) * predictions.fitted[1]);
      show();
    }));
    form.hidden = false;
    show();
  }

  /* `value` formats a best mean recurrence or parameter count. */
  function showAnswer({ flops, fitted, methods, whole, notes, reason, undetermined }, value) {
    const best = methods[0], times = flops / fitted[1];
    const extrapolates = times > 1.02 ? `${short(times, 3)} times the largest measured compute: an extrapolation`
      : flops < fitted[0] / 1.02 ? "below the smallest measured compute: an extrapolation"
        : "inside the measured compute";
    const texts = {
      "#best-value": value.inWords(best.value),
      "#best-value-interval": range(best.valueInterval, value.short),
      "#best-tokens": inWords(best.tokens),
      "#best-tokens-interval": range(best.tokensInterval, short),
      "#best-loss": loss(best.loss),
      "#best-loss-interval": best.loss === null ? "" : range(best.lossInterval, loss),
      "#best-perplexity": best.loss === null ? "" : `perplexity ${short(Math.exp(best.loss))}`,
      "#best-source": undetermined.length ? `The table has what each method alone would choose, ${extrapolates}.`
        : `By the ${best.name}, ${extrapolates}.${whole ? wholeSentence(whole) : ""}`,
      "#best-reason": `Why the ${best.name}: ${reason}.`,
    };
    find("#best-numbers").hidden = undetermined.length > 0;
    find("#best-undetermined").hidden = !undetermined.length;
    find("#best-why-not").replaceChildren(...undetermined.map((sentence) => newElement("li", sentence)));
    Object.entries(texts).forEach(([selector, text]) => (find(selector).textContent = text));
    const sentences = notes.map((note) => `${note[0].toUpperCase()}${note.slice(1)}.`);
    find("#best-notes").replaceChildren(...sentences.map((sentence) => newElement("li", sentence)));
    find("#best-methods").replaceChildren(...methods.map((method) => {
      const row = newElement("tr");
      const cells = [value.short(method.value), range(method.valueInterval, value.short), short(method.tokens),
        loss(method.loss), extra(method.extraLoss)];
      row.append(newElement("th", method.name, { scope: "row" }), ...cells.map((text) => newElement("td", text)));
      return row;
    }));
  }

  const wholeSentence = ({ mu, tokens, loss: least }) => ` With a whole number of loops: µ = ${mu}, ${short(tokens)} tokens` +
    `${least === null ? "" : ` and ${least === Infinity ? "an infinite loss" : `a loss of ${loss(least)}`}`}.`;

  function startSorting() {
    findAll("table.sorts").forEach((table) => {
      const headings = findAll("thead th", table), body = find("tbody", table);
      headings.forEach((heading, column) => {
        const button = newElement("button", heading.textContent, { type: "button", title: "sort by this column" });
        heading.replaceChildren(button);
        heading.setAttribute("aria-sort", "none");
        button.addEventListener("click", () => {
          const descending = heading.getAttribute("aria-sort") === "ascending";
          headings.forEach((other) => other.setAttribute("aria-sort", "none"));
          heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
          body.replaceChildren(...sorted([...body.rows], column, descending));
        });
      });
    });
  }

  /* Rows by the numbers of a column, or by its texts if it has none; missing values come last in either order. */
  function sorted(rows, column, descending) {
    const key = (row) => {
      const cell = row.cells[column], text = cell.textContent.trim();
      if ("value" in cell.dataset) return Number(cell.dataset.value);
      return text === "-" ? null : text;
    };
    return rows.map((row) => [key(row), row]).sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const numbers = typeof a === "number" && typeof b === "number";
      const order = numbers ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      return descending ? -order : order;
    }).map(([, row]) => row);
  }

  function startPoints() {
    const card = find("#card"), table = find("#runs-table");
    if (!card || !table) return;
    const rowOf = new Map(findAll("tbody tr", table).map((row) => [row.dataset.run, row]));
    const headings = findAll("thead th", table);
    /* A long table lists only its first runs; of the others, a point's title is known. */
    const titleOf = new Map(findAll("[data-run] > title").map((title) => [title.parentNode.dataset.run, title.textContent]));
    const facts = (run) => (rowOf.has(run) ? headings.flatMap((heading, i) =>
      "card" in heading.dataset ? [[heading.textContent, rowOf.get(run).cells[i].textContent]] : []) : [["run", titleOf.get(run) ?? run]]);
    const factsOf = (mark) => [...facts(mark.dataset.run), ...("lastLoss" in mark.dataset ? [["last training loss", mark.dataset.lastLoss]] : [])];
    let shown = null, pinned = false, pointer = null;

    /* Mark a run's row and lines, and put a ring around its points in every figure. */
    function highlight(run) {
      findAll(".ring").forEach((ring) => ring.remove());
      findAll(".lit").forEach((mark) => mark.classList.remove("lit"));
      rowOf.get(run)?.classList.add("lit");
      findAll("svg path[data-run]").forEach((line) => line.dataset.run === run && line.classList.add("lit"));
      findAll("svg use[data-run]").filter((point) => point.dataset.run === run).forEach((point) => {
        const ring = document.createElementNS(point.namespaceURI, "circle");
        const shape = { class: "ring", r: 8, cx: point.getAttribute("x"), cy: point.getAttribute("y") };
        Object.entries(shape).forEach(([name, value]) => ring.setAttribute(name, value));
        point.ownerSVGElement.append(ring);
      });
    }

    /* `place` is where a line was pointed at; the card of a point stands beside the point. */
    function show(point, pin = false, place = null) {
      pinned = pin && point !== null;
      if (point === shown) return;
      pointer = point?.matches("path") ? place : null;
      shown = point;
      highlight(point?.dataset.run);
      card.hidden = !point;
      if (!point) return;
      const list = newElement("dl"), run = point.dataset.run;
      factsOf(point).forEach(([label, text]) => list.append(newElement("dt", label), newElement("dd", text)));
      card.replaceChildren(list, newElement("a", "go to its row", { href: `#${rowOf.get(run)?.id || "runs"}` }));
      placeCard();
    }

    const placeOf = ({ clientX, clientY }) => ({ left: clientX, top: clientY, bottom: clientY, width: 0 });

    function placeCard() {
      if (!shown) return;
      const at = pointer ?? shown.getBoundingClientRect();
      card.hidden = at.bottom < 0 || at.top > innerHeight;
      const { width, height } = card.getBoundingClientRect();
      const left = at.left + at.width / 2 + (at.left > innerWidth / 2 ? -width - 14 : 14);
      const top = at.bottom + 10 + height > innerHeight ? at.top - height - 10 : at.bottom + 10;
      card.style.left = `${Math.max(4, Math.min(left, document.documentElement.clientWidth - width - 4))}px`;
      card.style.top = `${Math.max(4, top)}px`;
    }

    /* The point, or else the line, that is nearest to the pointer within a limit in pixels. */
    function nearest(points, event, limit) {
      const distances = points.map((point) => {
        const box = point.getBoundingClientRect();
        return Math.hypot(box.left + box.width / 2 - event.clientX, box.top + box.height / 2 - event.clientY);
      });
      const least = Math.min(...distances);
      return least <= limit ? points[distances.indexOf(least)] : nearestLine(event, limit / 2);
    }

    /* A line is a pixel wide, so that places around the pointer are tried, nearer ones first. */
    function nearestLine({ clientX, clientY }, limit) {
      for (let radius = 0; radius <= limit; radius += 2) {
        for (let turn = 0; turn < (radius ? 8 : 1); turn++) {
          const angle = (turn * Math.PI) / 4;
          const element = document.elementFromPoint(clientX + radius * Math.cos(angle), clientY + radius * Math.sin(angle));
          if (element?.matches("path[data-run]")) return element;
        }
      }
      return null;
    }

    findAll("svg.plot").forEach((plot) => {
      const points = findAll("use[data-run]", plot);
      findAll("path[data-run] > title", plot).forEach((title) => title.remove());
      points.forEach((point, i) => {
        find("title", point)?.remove();
        point.setAttribute("role", "img");
        point.setAttribute("aria-label", factsOf(point).map((pair) => pair.join(" ")).join(", "));
        // The tab key stops once in a figure; the arrow keys go from point to point.
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
        if (event.pointerType !== "touch" && !pinned) show(nearest(points, event, 14), false, placeOf(event));
      });
      plot.addEventListener("click", (event) => show(nearest(points, event, 26), true, placeOf(event)));
      plot.addEventListener("pointerleave", () => pinned || show(null));
      plot.addEventListener("focusout", (event) => {
        if (event.relatedTarget !== null && !card.contains(event.relatedTarget)) show(null);
      });
    });
    document.addEventListener("keydown", (event) => event.key === "Escape" && show(null));
    document.addEventListener("scroll", placeCard, { passive: true, capture: true });
    table.addEventListener("pointerover", (event) => shown || highlight(event.target.closest("tbody tr")?.dataset.run));
    table.addEventListener("pointerleave", () => shown || highlight());
  }

  function startCopying() {
    findAll("pre.copies").forEach((text) => {
      const button = newElement("button", "copy", { type: "button", class: "copy" });
      button.addEventListener("click", async () => {
        getSelection().selectAllChildren(text);
        try {
          await navigator.clipboard.writeText(text.textContent);
          button.textContent = "copied";
        } catch {
          button.textContent = "selected: copy it with the keyboard";
        }
      });
      const box = newElement("div", "", { class: "copy-box" });
      text.before(box);
      box.append(text, button);
    });
  }

  // Folded parts are unfolded for printing.
  addEventListener("beforeprint", () => findAll("details").forEach((part) => (part.open = true)));
  startCalculator();
  startSorting();
  startPoints();
  startCopying();
})();
