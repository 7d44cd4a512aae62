// One rollout as a conversation: code highlighted, observations set apart, tokens coloured on demand.

async function rolloutView(state) {
  const run = Store.runs[state.run];
  const rows = run.steps.length ? await Store.rollouts(state.run, state.step) : null;
  if (!rows) return h("div", {}, run.steps.length ? [places(state, []), leftOut(run)] : "This run has recorded no rollouts.");
  const row = rows.find((one) => one.rollout === state.rollout) ?? rows[0];
  state.rollout = row.rollout;
  state.group = row.group;
  const members = rows.filter((one) => one.group === row.group);
  const found = creditOf(members, state);
  const i = members.indexOf(row);
  const color = state.color ?? "advantage";
  return h(
    "div",
    {},
    places(state, [...new Set(rows.map((one) => one.group))]),
    h(
      "div",
      { class: "bar" },
      members.map((one) =>
        h("button", { class: one === row ? "here" : null, onclick: () => go({ rollout: one.rollout }) }, `${one.passed ? "✓" : "✗"} ${one.rollout}`),
      ),
      h("button", { onclick: () => go({ view: "group" }) }, "whole group"),
      select("tokens by", color, [["advantage", "advantage"], ["logprob", "log-probability"], ["mask", "loss mask"], ["none", "nothing"]], (value) => go({ color: value }, { replace: true })),
    ),
    whatIf(state, rows),
    verdictOf(row),
    message("problem", "user", h("div", { class: "text" }, shown(row.question)), `${row.prompt_tokens} tokens, not trained on`),
    h("div", { "data-follows": "result" }, row.turns.map((turn, j) => [turnMessage(turn, j, found, i, color), observation(turn)])),
  );
}

function verdictOf(row) {
  const parts = [
    row.verdict,
    row.extracted !== null && row.extracted !== undefined ? `read: ${row.extracted}` : null,
    `gold: ${row.answer}`,
    `ended by ${row.stop_reason}`,
    Object.keys(row.similarities).length ? `similarity to successes: ${similarityText(row)}` : null,
  ];
  return h("p", { class: `verdict ${row.passed ? "passed" : "failed"}`, id: "verdict" }, h("b", {}, row.passed ? "✓ passed" : "✗ failed"), ` · ${shown(parts.filter(Boolean).join(" · "))}`);
}

function message(title, kind, body, note) {
  return h("section", { class: `message ${kind}` }, h("header", {}, h("b", {}, title), h("span", { class: "hint" }, ` ${note ?? ""}`)), body);
}

function turnMessage(turn, j, found, i, color) {
  const now = found.now(i, j);
  const value = now.advantage;
  const note = `${turn.tokens} tokens · reward ${number(now.reward)} (${partsOf(turn, now.format)}) · return ${number(now.return)} · advantage `;
  const section = message(`turn ${j + 1}`, "model", h("div", { class: "text" }, tokens(turn, value, color)), note);
  section.querySelector("header").append(h("b", { class: "advantage", style: { background: tint(value) } }, signed(value, 4)));
  for (const call of turn.calls) {
    section.append(
      "invalid" in call
        ? h("p", { class: "bad" }, `invalid call: ${shown(call.invalid)}`)
        : h("pre", { class: "code" }, highlighted(call.code)),
    );
  }
  return section;
}

// The text of a turn, token by token where it is known where they end.
function tokens(turn, advantage, color) {
  if (color === "none") return [shown(turn.text)];
  if (!turn.token_chars) {
    const why = color === "logprob" ? " (the log-probabilities of this turn were not recorded)" : "";
    return [h("span", { style: { background: color === "logprob" ? "" : tint(color === "mask" ? 0.6 : advantage) } }, shown(turn.text)), h("span", { class: "hint" }, why)];
  }
  let place = 0;
  const characters = Array.from(turn.text); // whole characters, as Python counts them
  return turn.token_chars.map((length, k) => {
    const text = characters.slice(place, place + length).join("");
    place += length;
    const logprob = turn.logprobs?.[k];
    const background = color === "logprob" ? (logprob === undefined ? "" : tint(logprob, 4)) : tint(color === "mask" ? 0.6 : advantage);
    const title = `advantage ${signed(advantage, 4)}${logprob === undefined ? "" : `, log-probability ${number(logprob)}`}`;
    return h("span", { class: "token", style: { background }, title }, length ? shown(text) : k === turn.token_chars.length - 1 ? "⏎" : "");
  });
}

function observation(turn) {
  if (turn.observation === null) return null;
  const note = `${turn.observation_tokens} tokens, not trained on · ${turn.statuses.join(", ")} · ${number(turn.tool_wall_s * 1000, 0)} ms`;
  return message("observation", "tool", h("pre", {}, shown(turn.observation)), note);
}
