// All recorded rollouts: filtered, sorted, searched.

const DISAGREES = [["", "any"], ["success-", "success with a negative turn"], ["failure+", "failure with a positive turn"]];
const SORTS = ["step", "turns", "calls", "invalid", "tokens", "reward", "low", "high"];
const SHOWN = 200;

async function findView(state) {
  const { index } = Store.runs[state.run];
  const places = filtered(index, state);
  const searching = state.q ? await search(state, places) : { places, skipped: 0 };
  const sorted = sortedPlaces(index, searching.places, state);
  const notes = [`${sorted.length} of ${index.step.length} rollouts`];
  if (sorted.length > SHOWN) notes.push(`the first ${SHOWN} are shown`);
  if (searching.skipped) notes.push(`${searching.skipped} steps could not be searched: their rollouts are not in the page`);
  return h("div", {}, filters(state, index), h("p", { class: "hint", id: "count" }, notes.join(", ")), resultTable(index, sorted.slice(0, SHOWN), state));
}

function filtered(index, state) {
  const tests = [
    state.outcome === undefined || state.outcome === "" ? null : (i) => index.passed[i] === Number(state.outcome),
    state.stop ? (i) => index.stop[i] === state.stop : null,
    state.error ? (i) => index.errors[i].split(",").includes(state.error) : null,
    state.at ? (i) => index.step[i] === Number(state.at) : null,
    state.min ? (i) => index.turns[i] >= Number(state.min) : null,
    state.max ? (i) => index.turns[i] <= Number(state.max) : null,
    state.odd === "success-" ? (i) => index.passed[i] && index.low[i] < 0 : null,
    state.odd === "failure+" ? (i) => !index.passed[i] && index.high[i] > 0 : null,
  ].filter(Boolean);
  return index.step.map((_, i) => i).filter((i) => tests.every((test) => test(i)));
}

// Text search unpacks the steps that are left by the filters.
async function search(state, places) {
  const { index } = Store.runs[state.run];
  const needle = state.q.toLowerCase();
  const bySteps = new Map();
  for (const i of places) bySteps.set(index.step[i], [...(bySteps.get(index.step[i]) ?? []), i]);
  const found = [];
  let skipped = 0;
  for (const [step, members] of bySteps) {
    const rows = await Store.rollouts(state.run, step);
    if (!rows) {
      skipped += 1;
      continue;
    }
    const texts = new Map(rows.map((row) => [row.rollout, textOf(row)]));
    found.push(...members.filter((i) => texts.get(index.rollout[i])?.includes(needle)));
  }
  return { places: found, skipped };
}

function textOf(row) {
  const parts = [row.question, row.answer, row.problem_id, row.verdict, ...row.turns.flatMap((turn) => [turn.text, turn.observation ?? ""])];
  return parts.join("\n").toLowerCase();
}

function sortedPlaces(index, places, state) {
  const column = index[state.sort ?? "step"] ?? index.step;
  const sign = state.down ? -1 : 1;
  return [...places].sort((a, b) => sign * (column[a] - column[b]) || a - b);
}

function filters(state, index) {
  const stops = [...new Set(index.stop)].sort();
  const errors = [...new Set(index.errors.flatMap((text) => text.split(",")).filter(Boolean))].sort();
  const set = (name) => (value) => go({ [name]: value === "" ? undefined : value }, { replace: true });
  const box = (name, label, type) =>
    h("label", { class: "field" }, label, h("input", { type, id: `find-${name}`, value: state[name] ?? "", min: 1, onchange: (event) => set(name)(event.target.value) }));
  return h(
    "div",
    { class: "bar", id: "filters" },
    Store.runs.length > 1 ? select("run", state.run, Store.runs.map((run, i) => [i, run.name]), (value) => go({ run: Number(value), ...NOWHERE })) : null,
    box("q", "text", "search"),
    select("outcome", state.outcome ?? "", [["", "any"], ["1", "passed"], ["0", "failed"]], set("outcome")),
    select("step", state.at ?? "", [["", "any"], ...Store.runs[state.run].steps], set("at")),
    select("ended by", state.stop ?? "", [["", "any"], ...stops], set("stop")),
    select("call", state.error ?? "", [["", "any"], ...errors], set("error")),
    box("min", "turns from", "number"),
    box("max", "to", "number"),
    select("disagreement", state.odd ?? "", DISAGREES, set("odd")),
    h("button", { onclick: () => go({ q: undefined, outcome: undefined, at: undefined, stop: undefined, error: undefined, min: undefined, max: undefined, odd: undefined }) }, "clear"),
  );
}

function resultTable(index, places, state) {
  const heads = [["step", "step"], ["", "outcome"], ["turns", "turns"], ["calls", "calls"], ["invalid", "invalid"], ["tokens", "tokens"], ["reward", "reward"], ["low", "lowest advantage"], ["high", "highest"], ["", "ended by"], ["", "problem"]];
  const head = ([key, label]) => {
    if (!key) return h("th", {}, label);
    const here = (state.sort ?? "step") === key;
    const mark = here ? (state.down ? " ▾" : " ▴") : "";
    return h("th", {}, h("button", { class: "link", onclick: () => go({ sort: key, down: here && !state.down ? 1 : undefined }, { replace: true }) }, label + mark));
  };
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { id: "results" },
      h("tr", {}, heads.map(head)),
      places.map((i) =>
        h(
          "tr",
          {
            tabindex: 0,
            class: "row",
            onclick: () => openRollout(state, index, i),
            onkeydown: (event) => event.key === "Enter" && openRollout(state, index, i),
          },
          h("td", {}, String(index.step[i])),
          h("td", { class: index.passed[i] ? "passed" : "failed" }, index.passed[i] ? "✓ passed" : "✗ failed"),
          ["turns", "calls", "invalid", "tokens"].map((name) => h("td", {}, String(index[name][i]))),
          h("td", {}, number(index.reward[i], 2)),
          ["low", "high"].map((name) => h("td", { style: { background: tint(index[name][i]) } }, signed(index[name][i]))),
          h("td", {}, index.stop[i] + (index.errors[i] ? ` · ${index.errors[i]}` : "")),
          h("td", {}, shown(index.problems[index.problem[i]])),
        ),
      ),
    ),
  );
}

function openRollout(state, index, i) {
  go({ view: "rollout", run: state.run, step: index.step[i], group: index.group[i], rollout: index.rollout[i] });
}
