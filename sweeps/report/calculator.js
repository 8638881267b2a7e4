/* What `isoloop predict NAME --flops C` says, computed from the stored fit: fitting/predict.py in the page.
   Compute in FLOPs, losses in nats per token, intervals 95%. */
"use strict";

function calculator(fit) {
  const LEVEL = 0.95, EXTRAPOLATES = 1.02, ROUNDING = 1e-9;
  const { cost, search, training, powerLaws, leastLoss } = fit;
  const [lowest, highest] = search.bounds;
  const logs = Float64Array.from({ length: search.points }, (_, i) =>
    i === search.points - 1
      ? Math.log(highest)
      : Math.log(lowest) + (i * (Math.log(highest) - Math.log(lowest))) / (search.points - 1));
  const logSizes = logs.map((log) => Math.log(effectiveParams(Math.exp(log))));
  const logCosts = logs.map((log) => Math.log(flopsPerToken(Math.exp(log))));
  const draws = training && rows(training.draws, training.vector.length);
  const luck = training && numbers(training.luck);
  const lawDraws = powerLaws.map((law) => rows(law.draws, 2));
  const leastDraws = leastLoss && rows(leastLoss.draws, 3);

  function numbers(base64) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    return new Float64Array(bytes.buffer);
  }

  function rows(base64, width) {
    const flat = numbers(base64);
    return Array.from({ length: flat.length / width }, (_, i) => flat.subarray(i * width, (i + 1) * width));
  }

  /* Ends of the central 95% by percentiles, moved away from `around` by the factor `widening`. */
  function interval(values, around = null, widening = 1) {
    const sorted = Float64Array.from(values).filter((value) => !Number.isNaN(value)).sort();
    const end = (share) => {
      const place = share * (sorted.length - 1), below = Math.floor(place);
      const above = Math.min(below + 1, sorted.length - 1);
      return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
    };
    let low = end((1 - LEVEL) / 2), high = end((1 + LEVEL) / 2);
    if (around === null || widening === 1) return [low, high];
    [low, high] = [Math.min(low, around), Math.max(high, around)];
    if (low > 0) return [around * (low / around) ** widening, around * (high / around) ** widening];
    return [around - widening * (around - low), around + widening * (high - around)];
  }

  function interpolated(x, xs, ys) {
    if (x <= xs[0]) return ys[0];
    for (let i = 1; i < xs.length; i++) {
      if (x <= xs[i]) return ys[i - 1] + ((ys[i] - ys[i - 1]) / (xs[i] - xs[i - 1])) * (x - xs[i - 1]);
    }
    return ys[ys.length - 1];
  }

  function flopsPerToken(mu) {
    const nodes = cost.meanRecurrences, last = nodes[nodes.length - 1];
    const forward = mu + interpolated(mu, nodes, cost.forwardLoops.map((loops, i) => loops - nodes[i]));
    const beyond = mu - Math.min(Math.max(mu, nodes[0]), last);
    const backward = interpolated(mu, nodes, cost.backwardLoops) + cost.backwardSlope * beyond;
    return cost.fixed + cost.forward * forward + cost.backward * Math.max(backward, Math.min(1, cost.backwardLoops[0]));
  }

  function effectiveParams(mu) {
    return cost.paramsFixed + cost.paramsPerLoop * mu;
  }

  function lossOf([E, X, Y, x, y], logSize, logTokens) {
    return E + X * Math.exp(-x * logSize) + Y * Math.exp(-y * logTokens);
  }

  /* The mean recurrence of least loss under `vector` that spends the budget, as the search in fitting/laws/base.py. */
  function optimum(vector, logBudget) {
    let best = 0, least = Infinity;
    for (let i = 0; i < logs.length; i++) {
      const loss = lossOf(vector, logSizes[i], logBudget - logCosts[i]);
      if (loss < least) [best, least] = [i, loss];
    }
    const atBound = best === 0 || best === logs.length - 1;
    let left = logs[Math.max(best - 1, 0)], right = logs[Math.min(best + 1, logs.length - 1)];
    const golden = (Math.sqrt(5) - 1) / 2;
    const at = (log) => {
      const mu = Math.exp(log);
      return lossOf(vector, Math.log(effectiveParams(mu)), logBudget - Math.log(flopsPerToken(mu)));
    };
    for (let step = 0; step < search.steps && !atBound; step++) {
      const a = right - golden * (right - left), b = left + golden * (right - left);
      if (at(a) < at(b)) right = b;
      else left = a;
    }
    const mu = Math.exp(atBound ? logs[best] : (left + right) / 2);
    return { mu, tokens: Math.exp(logBudget) / flopsPerToken(mu), atBound };
  }

  /* The training law's loss of one model, with parameters and the noise of one run in the interval. */
  function trainingLoss(mu, tokens) {
    const logSize = Math.log(effectiveParams(mu)), logTokens = Math.log(tokens);
    const loss = lossOf(training.vector, logSize, logTokens);
    if (!draws.length) return { loss, lossInterval: null };
    const drawn = draws.map((draw) => loss * (lossOf(draw, logSize, logTokens) / loss) ** training.widening);
    const lucky = luck.map((noise, i) => {
      const one = drawn[i % drawn.length];
      return training.onLogLoss ? one * Math.exp(noise) : one + noise;
    });
    return { loss, lossInterval: interval(lucky) };
  }

  function byTraining(flops) {
    const logBudget = Math.log(flops), best = optimum(training.vector, logBudget), notes = [];
    const ends = `the end of the search from ${general(lowest, 6)} to ${general(highest, 6)}`;
    if (best.atBound) notes.push(`the best mean recurrence is at ${ends}`);
    let muInterval = null, tokensInterval = null;
    if (draws.length) {
      const drawn = draws.map((draw) => optimum(draw, logBudget));
      const [low, high] = interval(drawn.map((one) => one.mu), best.mu, training.widening);
      muInterval = [Math.max(low, lowest), Math.min(high, highest)];
      tokensInterval = interval(drawn.map((one) => one.tokens), best.tokens, training.widening);
      if (low <= lowest * (1 + ROUNDING) || high >= highest * (1 - ROUNDING)) {
        notes.push(`the 95% interval of the mean recurrence ends at ${ends}, so it may be wider`);
      }
    }
    const { mu, tokens } = best;
    return { name: "training law", mu, muInterval, tokens, tokensInterval, ...trainingLoss(mu, tokens), notes };
  }

  function byPowerLaw(law, drawn, flops) {
    const logBudget = Math.log(flops);
    const mu = Math.exp(law.logCoefficient + law.exponent * logBudget);
    let muInterval = null, tokensInterval = null;
    if (drawn.length) {
      muInterval = interval(drawn.map(([intercept, slope]) => intercept + slope * logBudget)).map(Math.exp);
      tokensInterval = [flops / flopsPerToken(muInterval[1]), flops / flopsPerToken(muInterval[0])];
    }
    const tokens = flops / flopsPerToken(mu), notes = [];
    if (mu < 1) notes.push(`the ${law.name} ask for a mean recurrence of ${general(mu, 3)}, but a loop runs at least once`);
    const loss = training ? trainingLoss(mu, tokens) : leastLossAt(flops);
    return { name: law.name, mu, muInterval, tokens, tokensInterval, ...loss, notes };
  }

  function leastLossAt(flops) {
    if (!leastLoss) return { loss: null, lossInterval: null };
    const at = ([floor, coefficient, exponent]) => floor + coefficient * (flops / leastLoss.reference) ** -exponent;
    return { loss: at(leastLoss.vector), lossInterval: leastDraws.length ? interval(leastDraws.map(at)) : null };
  }

  function extrapolations(flops, { mu, tokens }) {
    const asked = [
      ["compute", flops, fit.fitted.flops, "FLOPs"],
      ["token count", tokens, fit.fitted.tokens, "tokens"],
      ["mean recurrence", mu, fit.fitted.meanRecurrence, "loops"],
    ];
    return asked.flatMap(([label, value, [low, high], unit]) => {
      if (value > EXTRAPOLATES * high) {
        return [`${(value / high).toFixed(1)}x beyond the largest fitted ${label} (${general(high, 4)} ${unit})`];
      }
      if (value < low / EXTRAPOLATES) {
        return [`${(low / value).toFixed(1)}x below the smallest fitted ${label} (${general(low, 4)} ${unit})`];
      }
      return [];
    });
  }

  /* The training law's loss at whole numbers of loops beside µ*, the better one: models loop whole numbers of times. */
  function whole(flops, mu) {
    const tried = [Math.max(1, Math.floor(mu)), Math.max(1, Math.ceil(mu))].map((loops) => {
      const tokens = flops / flopsPerToken(loops);
      return { mu: loops, tokens, loss: training ? trainingLoss(loops, tokens).loss : null };
    });
    if (training) return tried[0].loss <= tried[1].loss ? tried[0] : tried[1];
    return mu - tried[0].mu <= tried[1].mu - mu ? tried[0] : tried[1];
  }

  /* Everything for `flops`: the best answer there is first, then the others. */
  function ask(flops) {
    const ways = powerLaws.map((law, i) => byPowerLaw(law, lawDraws[i], flops));
    if (training) ways.unshift(byTraining(flops));
    const notes = [...ways.flatMap((way) => way.notes), ...extrapolations(flops, ways[0])];
    return { flops, best: ways[0], ways, whole: whole(flops, ways[0].mu), notes };
  }

  return { ask, fitted: fit.fitted };
}

/* A number of FLOPs from what was typed; throws what to say where it is none. */
function readFlops(text) {
  const typed = text.trim(), plain = typed.replace(/[\s_]/g, "");
  const value = /^\+?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(plain) ? Number(plain) : NaN;
  if (value > 0 && Number.isFinite(value)) return value;
  const got = typed === "" ? "nothing" : `"${typed.length > 40 ? `${typed.slice(0, 40)}…` : typed}"`;
  throw new Error(`A budget must be a positive number of FLOPs, but got ${got}; type one such as 3.2e19.`);
}

/* As %.{digits}g writes a number. */
function general(value, digits) {
  if (value === 0) return "0";
  const [mantissa, power] = value.toExponential(digits - 1).split("e"), exponent = Number(power);
  const stripped = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  if (exponent < -4 || exponent >= digits) {
    return `${stripped(mantissa)}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
  }
  return stripped(value.toFixed(digits - 1 - exponent));
}
