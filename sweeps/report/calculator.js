/* The page's calculator: it interpolates a table of predictions that calculator.py made.
   Compute in FLOPs, losses in nats per token, intervals 95%. */
"use strict";

/* A function from a budget to the predictions for it, from the table's neighbouring budgets. */
function calculator(table) {
  const { budgets, methods, whole, notes, fitted, reason, undetermined } = table;
  const logs = budgets.map(Math.log), last = logs.length - 1;

  return (flops) => {
    if (flops < budgets[0] || flops > budgets[last]) {
      throw new Error(`The budget on this page must be between ${general(budgets[0], 3)} and ` +
        `${general(budgets[last], 3)} FLOPs, but got ${general(flops, 3)}; use isoloop predict for others.`);
    }
    const log = Math.log(flops);
    const above = Math.max(1, budgets.findIndex((budget) => budget >= flops)), below = above - 1;
    const share = (log - logs[below]) / (logs[above] - logs[below]);
    const nearest = share < 0.5 ? below : above;
    /* null is missing, 1e300 and above infinite, 1e-300 and below zero (see calculator.py). */
    const between = (low, high) => {
      if (low === null || high === null) return NaN;
      if (low >= 1e300 || high >= 1e300) return Infinity;
      if (low <= 1e-300 || high <= 1e-300) return 0;
      return Math.exp((1 - share) * Math.log(low) + share * Math.log(high));
    };
    const at = (values) => values && between(values[below], values[above]);
    const interval = (ends) => ends && ends[below] && ends[above] && [0, 1].map((side) => between(ends[below][side], ends[above][side]));
    const wholeLoops = () => {
      const mu = at(methods[0].value), better = whole.mean_recurrence[nearest];
      const loops = Math.abs(better - mu) < 1 ? better : Math.max(1, Math.round(mu));
      return { mu: loops, tokens: flops / whole.flops_per_token[loops - 1], loss: at(whole.loss) };
    };
    return {
      flops, fitted, reason, notes: notes[nearest], undetermined: undetermined[nearest],
      methods: methods.map((method) => ({
        name: method.name,
        value: at(method.value), valueInterval: interval(method.value_interval),
        tokens: at(method.tokens), tokensInterval: interval(method.tokens_interval),
        loss: at(method.loss), lossInterval: interval(method.loss_interval),
        extraLoss: method.extra_loss && method.extra_loss[nearest],
      })),
      whole: whole && wholeLoops(),
    };
  };
}

/* The number of FLOPs that was typed; throws an error with a message for the reader if it is none. */
function readFlops(text) {
  const typed = text.trim(), plain = typed.replace(/[\s_]/g, "");
  const value = /^\+?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(plain) ? Number(plain) : NaN;
  if (value > 0 && Number.isFinite(value)) return value;
  const got = typed === "" ? "nothing" : `"${typed.length > 40 ? `${typed.slice(0, 40)}…` : typed}"`;
  throw new Error(`A budget must be a positive number of FLOPs, but got ${got}; type a number such as 3.2e19.`);
}

/* A number as %.{digits}g writes it. */
function general(value, digits) {
  if (Number.isNaN(value)) return "-";
  if (!Number.isFinite(value)) return "infinite";
  if (value === 0) return "0";
  const [mantissa, power] = value.toExponential(digits - 1).split("e"), exponent = Number(power);
  const stripped = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  if (exponent < -4 || exponent >= digits) {
    return `${stripped(mantissa)}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
  }
  return stripped(value.toFixed(digits - 1 - exponent));
}
