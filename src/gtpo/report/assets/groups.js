const NOWHERE = { step: undefined, group: undefined, rollout: undefined, at: undefined, stop: undefined, error: undefined };

// All rollouts of a problem side by side, turns as rows, coloured by advantage; and what if the settings were others.

const WHAT_IF = ["gamma", "alpha", "format_penalty", "normalize_over", "zero_uniform_groups"];
const READ = { number: Number, boolean: (text) => String(text) === "true", string: String };
const SHORT = { gamma: "g", alpha: "a", format_penalty: "p", normalize_over: "s", zero_uniform_groups: "u" };

// The run's own settings with those of the address over them.
function settingsOf(state) {
  const own = Store.runs[state.run].settings;
  const found = { advantage_clip: own.advantage_clip };
  for (const name of WHAT_IF) {
    const given = state[SHORT[name]];
    found[name] = given === undefined ? own[name] : READ[typeof own[name]](given);
  }
  return found;
}

function changed(state) {
  return WHAT_IF.some((name) => state[SHORT[name]] !== undefined && String(state[SHORT[name]]) !== String(Store.runs[state.run].settings[name]));
}

// What a reward is made of, besides the outcome: the format penalty, and turn rewards of the user's own by name.
function partsOf(turn, format) {
  return [`format ${number(format)}`, ...Object.entries(turn.turn_rewards ?? {}).map(([name, value]) => `${shown(name)} ${number(value)}`)].join(", ");
}

// The credit of a group as recorded; or as GTPO would have it with the settings of the address.
function creditOf(rows, state) {
  const again = credit(rows.map((row) => factsOf(row, Store.runs[state.run].settings.alpha)), settingsOf(state));
  const isOwn = !changed(state);
  const now = (i, j) => {
    const turn = rows[i].turns[j];
    if (isOwn) return { format: turn.r_format, reward: turn.reward, return: turn.return, advantage: turn.advantage };
    const row = again.rows[i];
    return { format: row.format[j], reward: row.rewards[j], return: row.returns[j], advantage: row.advantages[j] };
  };
  return {
    now,
    isOwn,
    was: (i, j) => rows[i].turns[j].advantage,
    shaped: (i) => (isOwn ? rows[i].turns[rows[i].turns.length - 1].r_shaped : again.rows[i].shaped),
    flips: (i, j) => !isOwn && Math.sign(round(rows[i].turns[j].advantage)) !== Math.sign(round(again.rows[i].advantages[j])),
    // What the returns were normalised with is known of plain GTPO only.
    sets: isOwn && !isPlain(state) ? [] : again.sets,
    passes: again.passes,
    size: again.size,
    uniform: again.uniform,
  };
}

function isPlain(state) {
  const own = Store.runs[state.run].settings;
  return own.algorithm === "gtpo" && own.turn_rewards !== false && own.turn_returns !== false;
}

function round(value) {
  return Math.abs(value) < 1e-6 ? 0 : value;
}

async function groupView(state) {
  const run = Store.runs[state.run];
  if (!run.steps.length) return h("p", {}, "This run has recorded no rollouts (record_every: 0).");
  const rows = await Store.rollouts(state.run, state.step);
  if (!rows) return h("div", {}, places(state, []), leftOut(run));
  const groups = [...new Set(rows.map((row) => row.group))];
  if (!groups.includes(state.group)) state.group = groups[0];
  const members = rows.filter((row) => row.group === state.group);
  const found = creditOf(members, state);
  return h("div", {}, places(state, groups), whatIf(state, rows), h("div", { "data-follows": "result" }, groupHead(members, found), groupTable(members, found, state)));
}

function leftOut(run) {
  return h("p", { class: "warning" }, `The rollouts of this step were left out to keep the page small (${run.left_out.steps} of ${run.steps.length} steps). Write it again with --max_mb.`);
}

function places(state, groups) {
  const run = Store.runs[state.run];
  return h(
    "div",
    { class: "bar" },
    Store.runs.length > 1
      ? select("run", state.run, Store.runs.map((one, i) => [i, one.name]), (value) => go({ run: Number(value), ...NOWHERE }))
      : null,
    select("step", state.step, run.steps, (value) => go({ step: Number(value), group: undefined, rollout: undefined })),
    groups.length ? select("group", state.group, groups, (value) => go({ group: Number(value), rollout: undefined })) : null,
  );
}

function whatIf(state, rows) {
  const own = Store.runs[state.run].settings;
  const now = settingsOf(state);
  const set = (name) => (value) => go({ [SHORT[name]]: value }, { replace: true });
  const slider = (name, min, max, step) =>
    h(
      "label",
      { class: "field", title: `the run's own: ${own[name]}` },
      name,
      h("input", { type: "range", id: `what-${name}`, min, max, step, value: now[name], oninput: (event) => set(name)(Number(event.target.value)) }),
      h("output", { "data-follows": name }, String(now[name])),
    );
  const flips = rows ? flipsOf(rows, state) : 0;
  return h(
    "fieldset",
    { class: "bar", id: "what-if" },
    h("legend", {}, "What if"),
    slider("gamma", 0, 1, 0.01),
    slider("alpha", 0, 1, 0.05),
    slider("format_penalty", -1, 0, 0.05),
    select("normalize_over", now.normalize_over, ["all_turns", "first_turns", "same_turn"], set("normalize_over"), `the run's own: ${own.normalize_over}`),
    select("zero_uniform_groups", now.zero_uniform_groups, ["true", "false"], set("zero_uniform_groups"), `the run's own: ${own.zero_uniform_groups}`),
    h("button", { id: "reset", "data-follows": "reset", disabled: !changed(state), onclick: () => go({ g: undefined, a: undefined, p: undefined, s: undefined, u: undefined }) }, "as it was"),
    h("span", { id: "flips", "data-follows": "flips" }, changed(state) ? `${flips} turns of this step change their sign` : ""),
    now.alpha > 0 && !own.alpha ? h("span", { class: "warning" }, "no similarities were recorded: alpha was 0") : null,
    isPlain(state) ? null : h("span", { class: "warning" }, changed(state) ? "what plain GTPO would have given" : `as recorded, by ${own.algorithm === "gtpo" ? "GTPO without one of its parts" : own.algorithm}; a change shows what plain GTPO would have given`),
  );
}

function flipsOf(rows, state) {
  if (!changed(state)) return 0;
  const groups = new Map();
  for (const row of rows) groups.set(row.group, [...(groups.get(row.group) ?? []), row]);
  let count = 0;
  for (const members of groups.values()) {
    const found = creditOf(members, state);
    members.forEach((row, i) => row.turns.forEach((_, j) => (count += found.flips(i, j))));
  }
  return count;
}

function groupHead(members, found) {
  const problem = members[0];
  const sets = found.sets.map((set, j) => `${found.sets.length > 1 ? `turn ${j + 1}: ` : ""}mean ${number(set.origin + set.mean)}, deviation ${number(set.deviation)}, ${set.size} returns`);
  return h(
    "div",
    { class: "problem" },
    h("p", { class: "question" }, shown(problem.question)),
    h("p", { class: "hint" }, `gold: ${shown(problem.answer)} · ${problem.problem_id} · ${found.passes} of ${found.size} passed${found.uniform ? " (uniform outcome)" : ""}${sets.length ? ` · ${sets.join("; ")}` : ""}`),
  );
}

function groupTable(members, found, state) {
  const longest = Math.max(...members.map((row) => row.turns.length));
  const open = (row) => () => go({ view: "rollout", rollout: row.rollout });
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { class: "group", id: "group" },
      h(
        "tr",
        {},
        h("th", {}, ""),
        members.map((row) =>
          h(
            "th",
            {},
            h("button", { class: `link ${row.passed ? "passed" : "failed"}`, onclick: open(row), title: row.verdict }, `${row.passed ? "✓" : "✗"} rollout ${row.rollout}`),
            h("div", { class: "hint" }, row.stop_reason),
          ),
        ),
      ),
      Array.from({ length: longest }, (_, j) => h("tr", {}, h("th", {}, `turn ${j + 1}`), members.map((row, i) => turnCell(row, found, i, j, open(row))))),
      h("tr", {}, h("th", {}, "similarity"), members.map((row) => h("td", { class: "hint" }, similarityText(row)))),
      h("tr", {}, h("th", {}, "shaped"), members.map((row, i) => h("td", {}, number(found.shaped(i))))),
      h("tr", {}, h("th", {}, "tokens"), members.map((row) => h("td", {}, String(row.turns.reduce((sum, turn) => sum + turn.tokens, 0))))),
    ),
  );
}

function similarityText(row) {
  const entries = Object.entries(row.similarities);
  return entries.length ? entries.map(([place, value]) => `${place}: ${number(value, 2)}`).join(", ") : "–";
}

function turnCell(row, found, i, j, onclick) {
  const turn = row.turns[j];
  if (!turn) return h("td", { class: "none" });
  const now = found.now(i, j);
  const value = now.advantage;
  const bad = turn.calls.some((call) => "invalid" in call);
  const errors = turn.statuses.filter((status) => status !== "ok" && status !== "invalid");
  const text = turn.calls.map((call) => call.code ?? `invalid: ${call.invalid}`).join("\n") || turn.text;
  return h(
    "td",
    {
      class: `turn${found.flips(i, j) ? " flips" : ""}`,
      style: { background: tint(value) },
      onclick,
      title: `reward ${number(now.reward)} (${partsOf(turn, now.format)}), return ${number(now.return)}, advantage ${signed(value, 4)}${found.isOwn ? "" : `, was ${signed(found.was(i, j), 4)}`}`,
    },
    h("b", { class: "advantage" }, signed(value)),
    h("span", { class: "hint" }, ` R ${number(now.return, 2)} r ${number(now.reward, 2)}`),
    bad ? h("span", { class: "tag bad" }, "invalid") : null,
    errors.map((status) => h("span", { class: "tag" }, status)),
    found.flips(i, j) ? h("span", { class: "tag flip" }, `was ${signed(found.was(i, j))}`) : null,
    h("code", {}, shown(text.slice(0, 160))),
  );
}
