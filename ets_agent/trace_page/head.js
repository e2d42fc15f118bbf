// The head of the page: question, answer, cost, and the response as the steps put it together.

/** Longer questions are folded, in characters. */
const LONG = 1500;

const ENDS = {
  stop: "finished",
  length: "ended by max_tokens",
  timeout: "cut short by the timeout",
  budget: "cut short by the token budget",
};

function head() {
  const created = new Date(data.created);
  const when = created.toLocaleString("en", { dateStyle: "long", timeStyle: "short" });
  return el(
    "header",
    { class: "head" },
    el("h1", {}, "A guided run"),
    el("p", { class: "origin" }, el("time", { datetime: data.created }, when), " · ", el("code", {}, data.id)),
    question(),
    answer(),
    data.warnings.length ? warnings() : null,
    data.result ? cost() : null,
  );
}

function question() {
  const length = data.prompt.reduce((sum, message) => sum + message.text.length, 0);
  const alone = data.prompt.length === 1 && data.prompt[0].role === "user";
  const messages = data.prompt.map((message) =>
    el("div", { class: "message" }, alone ? null : el("h3", {}, message.role), el("p", {}, written(message.text, "asked"))),
  );
  const body =
    length <= LONG
      ? messages
      : el("details", {}, el("summary", {}, `${whole(length)} characters: ${data.prompt.at(-1).text.slice(0, 200)}…`), messages);
  return el("section", { class: "question", "aria-labelledby": "question" }, el("h2", { id: "question" }, "Question"), body);
}

function answer() {
  const section = el("section", { class: "answer", "aria-labelledby": "answer" }, el("h2", { id: "answer" }, "Answer"));
  if (!data.result) {
    const began = data.step > data.steps.length;
    const all = data.numSteps ? ` of ${data.numSteps}` : "";
    const where = began ? `Step ${data.step}${all} had begun` : `${plural(data.steps.length, "step")} had been taken`;
    section.append(
      el("p", { class: "unfinished" }, el("strong", {}, "The run was not finished"), ` when this file ends. ${where}.`),
    );
    return section;
  }
  const { result } = data;
  section.append(
    result.answer === null
      ? el("p", { class: "none" }, "The reward reads no final answer in the response.")
      : el("p", { class: "final" }, written(result.answer, "found")),
    verdict(),
    result.confidence === null
      ? null
      : el("p", { class: "about" }, "Confidence: the share of weight behind this answer, averaged over the steps; no probability of being right."),
  );
  return section;
}

function verdict() {
  const { result } = data;
  const by = data.rewardName ? [" by ", el("code", {}, data.rewardName)] : [];
  const judged = result.reward === null ? ["no verdict"] : ["reward ", el("strong", {}, reward(result.reward))];
  const sure = result.confidence === null ? [] : [" · confidence ", el("strong", {}, decimal(result.confidence))];
  return el("p", { class: "verdict" }, judged, by, sure, " · ", ENDS[result.finish]);
}

function warnings() {
  return el(
    "section",
    { class: "warnings", "aria-labelledby": "warnings" },
    el("h2", { id: "warnings" }, data.warnings.length === 1 ? "A warning" : `${data.warnings.length} warnings`),
    el("ul", {}, data.warnings.map((message) => el("li", { dir: "auto" }, message))),
  );
}

function cost() {
  const { result } = data;
  const { usage } = result;
  const parts = [
    [usage.candidate_tokens, "as candidates"],
    [usage.rollout_tokens, "as rollouts"],
    [usage.scoring_tokens, "scored"],
  ];
  const spent = parts.filter(([count]) => count > 0).map(([count, what]) => `${whole(count)} ${what}`);
  const saved = usage.saved_tokens > 0 ? `; ${whole(usage.saved_tokens)} saved` : "";
  const entries = [
    ["Model", el("code", {}, result.model)],
    ["Rollouts by", result.proposal === null ? null : el("code", {}, result.proposal)],
    ["Tokens", whole(usage.total_tokens), spent.join(", ") + saved],
    ["Time", `${decimal(usage.seconds, usage.seconds < 10 ? 2 : 0)} s`],
    ["Seed", el("code", {}, result.seed)],
  ];
  if (result.logNormalizer !== null) {
    const value = decimal(result.logNormalizer) + plusMinus(result.logNormalizerError);
    entries.push(["log E[exp(r/λ)]", value, "nats, under the model alone"]);
  }
  return el(
    "section",
    { class: "cost", "aria-label": "Model and cost" },
    facts(entries.filter(([, value]) => value !== null), "facts"),
    el(
      "details",
      { class: "settings" },
      el("summary", {}, "Settings"),
      facts(result.settings.map(({ name, value, about }) => [el("code", {}, name), value, about]), "list"),
    ),
  );
}

function path() {
  const rest = data.result ? data.result.rest : "";
  if (!data.path.length && !rest) return null;
  const parts = data.path.map((text, index) =>
    el(
      "a",
      { href: `#step-${data.steps[index].step}`, class: "block" },
      el("sup", { "aria-hidden": "true" }, String(data.steps[index].step)),
      unseen(`step ${data.steps[index].step}: `),
      el("span", { class: "text", dir: "auto" }, text),
    ),
  );
  if (rest) parts.push(el("span", { class: "rest" }, unseen("from a rollout: "), el("span", { class: "text", dir: "auto" }, rest)));
  return el(
    "section",
    { class: "path", "aria-labelledby": "path" },
    el("h2", { id: "path" }, data.result ? "Response" : "Response so far"),
    el("p", { class: "response" }, parts),
    el(
      "p",
      { class: "hint" },
      `The numbers are the steps in which each part was chosen${rest ? "; the last part is from the best rollout" : ""}.`,
    ),
  );
}
