// Figures over steps, all runs overlaid; alarms; settings.

const PANELS = [
  ["pass_rate"],
  ["reward/total"],
  ["reward/shaped"],
  ["reward/format"],
  ["turns"],
  ["calls"],
  ["invalid_calls"],
  ["completions/mean_length"],
  ["entropy"],
  ["clip_ratio/region_mean"],
  ["groups/frac_all_passed"],
  ["groups/frac_all_failed"],
  ["advantage/frac_negative_on_success"],
  ["grad_norm"],
];

function overview(state) {
  const runs = Store.runs;
  const open = (run) => (step) => {
    const near = runs[run].steps.reduce((a, b) => (Math.abs(b - step) < Math.abs(a - step) ? b : a), runs[run].steps[0]);
    if (near !== undefined) go({ view: "group", run, step: near, group: undefined, rollout: undefined });
  };
  const charts = PANELS.map(([name]) =>
    lineChart(
      name,
      runs.map((run) => ({ name: run.name, points: pointsOf(run, name) })),
      { onstep: runs.length === 1 ? open(0) : undefined },
    ),
  );
  charts.push(...sharesChart(runs, "stop/", "how rollouts ended"), ...timeCharts(runs));
  return h(
    "div",
    {},
    alarmList(runs),
    runs.length === 1 ? h("p", { class: "hint" }, "Click a chart to see the groups of that step.") : null,
    h("div", { class: "charts" }, charts),
    h("h2", {}, "Settings"),
    settingsTable(runs),
    state.all ? allFigures(runs) : h("button", { onclick: () => go({ all: 1 }) }, "Every logged figure"),
  );
}

function pointsOf(run, name) {
  return run.metrics.filter((row) => name in row).map((row) => [row.step, row[name]]);
}

function names(runs) {
  return [...new Set(runs.flatMap((run) => run.metrics.flatMap((row) => Object.keys(row))))].sort();
}

// One chart a run: parts of a whole.
function sharesChart(runs, prefix, label) {
  return runs.map((run) => {
    const parts = names([run]).filter((name) => name.startsWith(prefix));
    const used = parts.filter((name) => pointsOf(run, name).some((point) => point[1] > 0));
    const series = used.map((name) => ({ name: name.slice(prefix.length), points: pointsOf(run, name) }));
    const meaning = { unit: "0..1", meaning: parts.map((name) => `${name}: ${meaningOf(name).meaning}`).join("\n") };
    return lineChart(prefix, series, { label: runs.length > 1 ? `${label}: ${run.name}` : label, meaning });
  });
}

function timeCharts(runs) {
  return runs.map((run) => {
    const parts = ["rollout", "tools", "scoring", "verify", "credit", "record", "update"];
    const series = parts.map((part) => ({ name: part, points: pointsOf(run, `time/${part}_share`) }));
    const meaning = { unit: "share of a step", meaning: parts.map((p) => `${p}: ${meaningOf(`time/${p}_s`).meaning}`).join("\n") };
    return lineChart("time", series, { label: runs.length > 1 ? `time: ${run.name}` : "where the time goes", meaning });
  });
}

function alarmList(runs) {
  const found = runs.flatMap((run) => run.alarms.map((alarm) => ({ ...alarm, run: run.name })));
  if (!found.length) return h("p", { class: "calm", id: "alarms" }, "No alarm.");
  return h(
    "ul",
    { class: "alarms", id: "alarms" },
    found.map((alarm) =>
      h("li", {}, h("b", {}, `${runs.length > 1 ? `${alarm.run}: ` : ""}${alarm.name}`), ` ${alarm.sentence}`),
    ),
  );
}

function settingsTable(runs) {
  const rows = [...new Set(runs.flatMap((run) => Object.keys(run.settings)))];
  return h(
    "table",
    { class: "settings" },
    h("tr", {}, h("th", {}, ""), runs.map((run) => h("th", {}, run.name))),
    rows.map((name) => {
      const values = runs.map((run) => String(run.settings[name] ?? ""));
      const differs = new Set(values).size > 1;
      return h("tr", { class: differs ? "differs" : null }, h("td", {}, name), values.map((value) => h("td", {}, shown(value))));
    }),
  );
}

function allFigures(runs) {
  const done = new Set(PANELS.map(([name]) => name));
  const rest = names(runs).filter((name) => !done.has(name) && name !== "step");
  return h(
    "div",
    { class: "charts" },
    rest.map((name) => lineChart(name, runs.map((run) => ({ name: run.name, points: pointsOf(run, name) })))),
  );
}
