// The tree: steps, their candidates, and the rollouts of a candidate that is opened.

/** Rows to draw at first, of all steps together; the others come when they are asked for. */
const MOST_ROWS = 1200;
/** Bounds of the rows that one step begins with. */
const FEWEST_ROWS_OF_A_STEP = 4;
const MOST_ROWS_OF_A_STEP = 30;
/** With more steps than this, those out of sight are not laid out. */
const MANY_STEPS = 40;

const ROLLOUT_ENDS = { stop: "finished", length: "token limit", error: "failure, left out" };
const FALLBACKS = {
  equal_rewards: "All rewards were equal, so the weights are uniform: the choice is the model’s own.",
  zero_energies: "All energies were zero, so the weights are uniform: the choice is the model’s own.",
  no_verdict: "No rollout had a verdict, so the weights are uniform: the choice is the model’s own.",
};

/** Below this largest weight of all steps, bars are drawn on a scale of their own; otherwise a full bar is 100 %. */
const SMALL_WEIGHT = 0.1;

const TERMS = [
  ["Candidate", "A piece of text with which the response could go on; each step draws several and keeps one, with a probability equal to its weight."],
  ["Rollout", "A whole response that begins with a candidate. The reward judges rollouts, and so the candidates."],
  ["log Ê", "A candidate’s log-energy: the logarithm of the mean of exp(reward / λ) over its rollouts, in nats (the unit of natural logarithms), with its standard error. The error is unknown where no rollout got a reward, or where it is above 1 nat."],
  ["Weight", "A candidate’s share of the energies of its step. Bars are weights."],
  ["Effective sample size", "How many candidates, or rollouts, share the weight: 1 where one has all of it, their number where all have the same."],
  ["Confidence", "The share of weight behind the answer, averaged over the steps. It says how much the search agreed with itself, and is no probability of being right."],
];

function steps() {
  if (!data.steps.length) return null;
  const share = Math.floor(MOST_ROWS / data.steps.length);
  const largest = data.steps.reduce((most, step) => step.rows.reduce((sofar, row) => Math.max(sofar, row.weight), most), 0);
  const full = largest < SMALL_WEIGHT ? fullBar(largest) : 1;
  const limit = Math.min(MOST_ROWS_OF_A_STEP, Math.max(FEWEST_ROWS_OF_A_STEP, share));
  return el(
    "section",
    { class: "steps", "aria-labelledby": "steps" },
    el("h2", { id: "steps" }, "Steps"),
    el(
      "p",
      { class: "hint" },
      "The thick line leads through the candidates that were chosen. ",
      data.steps.some((step) => step.chains > 1) ? "Thick twigs are candidates from which other chains go on. " : null,
      "A candidate opens to the rollouts it was judged by.",
    ),
    el("details", { class: "reading" }, el("summary", {}, "How to read this page"), facts(TERMS, "list")),
    el("div", { class: data.steps.length > MANY_STEPS ? "tree many" : "tree" }, data.steps.map((step) => stepSection(step, limit, full)), end()),
  );
}

function stepSection(step, limit, full) {
  const list = el("ol", { class: "candidates", role: "list", "aria-label": `Candidates of step ${step.step}` });
  const most = step.rows.length <= limit + 2 ? step.rows.length : limit;
  list.append(...step.rows.slice(0, most).map((row, index) => candidate(step, row, index, full)));
  if (most < step.rows.length) list.append(more(step, list, most, full));
  list.addEventListener("keydown", moveFocus);
  return el(
    "section",
    { class: step.rows.length > 1 ? "step" : "step alone", "aria-labelledby": `step-${step.step}` },
    el(
      "div",
      { class: "step-head" },
      el("h3", { id: `step-${step.step}`, tabindex: "-1" }, `Step ${step.step}`),
      el("p", { class: "summary" }, summary(step)),
      step.fallback ? el("p", { class: "note" }, FALLBACKS[step.fallback]) : null,
      alarms(step).map((alarm) => el("p", { class: "note alarm" }, alarm)),
      diagnostics(step),
      el(
        "div",
        { class: "columns", "aria-hidden": "true" },
        span(""),
        span("weight", "weight"),
        span("scale", span("", "0"), span("", percent(full).replace(".0", ""))),
        span("text", "candidate"),
        span("energy", "log Ê, nats"),
      ),
    ),
    list,
  );
}

function summary(step) {
  const [all, different] = [step.candidates, step.rows.length];
  const parts = [all > 1 && different === 1 ? `${whole(all)} identical candidates` : plural(all, "candidate")];
  if (different > 1 && different < all) parts[0] += `, ${whole(different)} different`;
  if (step.chains > 1) parts.push(plural(step.chains, "chain") + (step.resampled ? ", resampled" : ""));
  if (step.numRollouts) parts.push(`${plural(step.numRollouts, "rollout")} each`);
  parts.push(`effective sample size ${decimal(step.ess, 1)} of ${whole(all)}`);
  return parts.join(" · ");
}

function alarms(step) {
  const found = [];
  if (step.verdict) found.push(step.verdict);
  if (step.dropped) found.push(`${plural(step.dropped, "rollout")} without a verdict, left out of the estimates.`);
  return found;
}

function diagnostics(step) {
  const judged = step.numJudged ? ` of ${whole(step.numJudged)}` : "";
  const entries = [
    ["Rollouts that carry the weight", decimal(step.rolloutEss, 1) + judged, "effective sample size of the rollouts"],
    ["Largest share of one rollout", percent(step.largestShare)],
    ["Selection error", decimal(step.selectionError, 3), "expected distance to the selection with exact energies, 0 to 1"],
  ];
  if (step.numRatios) {
    const ess = step.ratioEss === null ? "unknown" : `${decimal(step.ratioEss, 1)} of ${whole(step.numRatios)}`;
    entries.push(["Importance weights that count", ess, "their effective sample size"]);
  }
  if (step.paretoK !== null) entries.push(["Pareto k", decimal(step.paretoK), "tail of the importance weights; good below 0.7"]);
  return el(
    "details",
    { class: "diagnostics" },
    el("summary", {}, "How far to trust the weights", unseen(` of step ${step.step}`)),
    facts(entries, "list"),
  );
}

function more(step, list, from, full) {
  const hidden = step.rows.length - from;
  const button = el("button", { type: "button", class: "all" }, `Show ${whole(hidden)} more`, unseen(` of step ${step.step}`));
  const item = el("li", { class: "more" }, button);
  button.addEventListener("click", () => {
    const rows = step.rows.slice(from).map((row, index) => candidate(step, row, from + index, full));
    list.classList.add("long");
    item.replaceWith(...rows);
    rows[0].querySelector("button").focus();
  });
  return item;
}

function candidate(step, row, index, full) {
  const group = data.groups[row.group];
  const id = `rollouts-${step.step}-${index}`;
  const bar = span("bar");
  bar.style.setProperty("--share", String(Math.min(1, row.weight / full)));
  const button = el(
    "button",
    { type: "button", class: "row", "aria-expanded": "false", "aria-controls": id },
    el("span", { class: "chevron", "aria-hidden": "true" }),
    span("weight", row.path ? unseen("chosen, ") : null, unseen("weight "), percent(row.weight)),
    el("span", { class: "track", "aria-hidden": "true" }, bar),
    span("what", written(data.texts[row.text], "text"), span("under", ...tags(step, row), said(group))),
    span("energy", unseen("log-energy "), ...energy(row, group)),
  );
  const panel = el("div", { id, class: "rollouts", hidden: true });
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-expanded") === "true";
    if (!open && !panel.childElementCount) panel.append(...rollouts(row, group));
    button.setAttribute("aria-expanded", String(!open));
    panel.hidden = open;
  });
  const kind = row.path ? "candidate path-candidate" : row.kept.length ? "candidate kept" : "candidate";
  return el("li", { class: kind }, button, panel);
}

function tags(step, row) {
  const found = [];
  if (row.path) found.push(el("span", { class: "tag chosen", "aria-hidden": "true" }, "chosen"));
  else if (row.chosen) found.push(span("tag", "ahead for now"));
  if (row.count > 1) found.push(span("tag", `× ${whole(row.count)}`, unseen(" identical")));
  if (row.finished) found.push(span("tag", "complete"));
  if (step.chains > 1) found.push(span("tag", `of chain ${row.chain + 1}`));
  if (row.kept.length > 1 || (row.kept.length && row.kept[0] !== row.chain)) {
    found.push(span("tag", `goes on as chain ${row.kept.map((chain) => chain + 1).join(", ")}`));
  } else if (step.chains > 1 && row.kept.length && !row.path) {
    found.push(unseen("goes on"));
  }
  return found.flatMap((tag) => (tag.ariaHidden ? [tag] : [unseen(", "), tag]));
}

/** What the rollouts answer, most frequent first. */
function said(group) {
  const counts = new Map();
  for (const rollout of group.rollouts) {
    if (rollout.answer !== null) counts.set(rollout.answer, (counts.get(rollout.answer) ?? 0) + rollout.count);
  }
  if (!counts.size) return null;
  const sorted = [...counts].sort((one, other) => other[1] - one[1]);
  const shown = sorted.slice(0, 4).flatMap(([answer, count]) => [
    el("span", { class: "one", dir: "auto" }, clipped(answer), count > 1 ? span("times", ` × ${count}`) : null),
    " ",
  ]);
  if (sorted.length > 4) shown.push(`and ${sorted.length - 4} more`);
  return span("said", unseen(", answers: "), el("span", { "aria-hidden": "true" }, "→ "), ...shown);
}

const clipped = (text) => (text.length > 48 ? `${[...text].slice(0, 48).join("")}…` : text);

function energy(row, group) {
  if (row.logEnergy === null) return ["unknown"];
  const value = decimal(row.logEnergy);
  if (row.finished) return [value, span("error", " exact")];
  const error = plusMinus(row.error, row.error === 0 || group.rollouts.some((rollout) => rollout.reward));
  return error ? [value, span("error", error)] : [value];
}

/** Up and down, home and end go from candidate to candidate of a step. */
function moveFocus(event) {
  const buttons = [...event.currentTarget.querySelectorAll(":scope > li > button")];
  const here = buttons.indexOf(document.activeElement);
  const places = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: buttons.length - 1 };
  const next = buttons[places[event.key]];
  if (here < 0 || !next || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  next.focus();
}

function rollouts(row, group) {
  const heading = row.finished
    ? "This candidate is a complete response, judged as it is."
    : plural(group.rollouts.reduce((sum, rollout) => sum + rollout.count, 0), "rollout");
  const shared = row.count > 1 ? `, shared by ${row.count} identical candidates` : "";
  return [
    el("h4", {}, heading + (row.finished ? "" : shared)),
    el("ul", { role: "list" }, group.rollouts.map((rollout) => rolloutItem(rollout, group))),
  ];
}

function rolloutItem(rollout, group) {
  const entries = [
    ["answer", rollout.answer === null ? span("none", "none") : el("strong", { dir: "auto" }, rollout.answer)],
    ["reward", rollout.reward === null ? span("none", "no verdict") : el("strong", {}, reward(rollout.reward))],
  ];
  if (rollout.logRatio !== null) entries.push(["log ρ", decimal(rollout.logRatio)]);
  if (rollout.logprob !== null) entries.push(["log p", decimal(rollout.logprob)]);
  entries.push(["end", ROLLOUT_ENDS[rollout.finish]]);
  if (rollout.count > 1) entries.push(["drawn", `${rollout.count} times`]);
  const lead = [...data.texts[group.lead]];
  const before = lead.slice(0, Math.max(0, lead.length - rollout.cut)).join("");
  const text = data.texts[rollout.text];
  return el(
    "li",
    {},
    facts(entries, "about-rollout"),
    el(
      "p",
      { class: "rollout" },
      before ? el("span", { class: "before" }, unseen("After "), (group.elided ? "…" : "") + before) : null,
      text ? el("span", { class: "beyond" }, unseen(" the rollout adds "), text) : null,
    ),
  );
}

function end() {
  const { result } = data;
  if (!result) {
    return el("p", { class: "end unfinished" }, "Here the file ends; the run was not finished.");
  }
  const found = result.answer === null ? "No final answer" : ["Answer ", el("strong", { dir: "auto" }, clipped(result.answer))];
  return el("p", { class: "end" }, found, ` · ${ENDS[result.finish]}`);
}
