// Where one is stands in the address, so a link leads to exactly this view; keys, theme, and news of a live run.

const VIEWS = { overview, group: groupView, rollout: rolloutView, find: findView };
const NUMBERS = new Set(["run", "step", "group", "rollout", "all", "down"]);
const HELP = "1 2 3 4: views · j k: next and previous rollout · n p: group · ] [: step · /: search · t: light or dark";

function readState() {
  const state = { view: "overview", run: 0 };
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) state[name] = NUMBERS.has(name) ? Number(value) : value;
  if (!VIEWS[state.view]) state.view = "overview";
  if (!Store.runs[state.run]) state.run = 0;
  const { steps } = Store.runs[state.run];
  if (!steps.includes(state.step)) state.step = steps[steps.length - 1];
  return state;
}

function go(changes, { replace = false } = {}) {
  const next = { ...readState(), ...changes };
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(next)) if (value !== undefined && value !== null) query.set(name, value);
  if (replace) {
    history.replaceState(null, "", `#${query}`);
    render();
  } else if (`#${query}` === location.hash) render();
  else location.hash = query;
}

let latest = 0;

async function render() {
  const turn = ++latest;
  const state = readState();
  let view;
  try {
    view = await VIEWS[state.view](state);
  } catch (error) {
    view = h("p", { class: "warning", id: "error" }, `This can't be shown: ${error.message}`);
  }
  if (turn !== latest) return;
  const app = document.getElementById("app");
  const same = app.dataset.view === state.view;
  const scrolls = same ? [window.scrollY, ...[...app.querySelectorAll(".scroll")].map((one) => one.scrollLeft)] : [0];
  const focus = document.activeElement?.id;
  const dragged = app.querySelector("input[type=range]:active");
  const next = [top(state), h("main", {}, view), h("footer", {}, HELP)];
  if (dragged && same) {
    exchange(app, next[1]);
  } else {
    app.replaceChildren(...next);
    if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
  }
  app.dataset.view = state.view;
  window.scrollTo(0, scrolls[0]);
  app.querySelectorAll(".scroll").forEach((one, i) => (one.scrollLeft = scrolls[i + 1] ?? 0));
  current = state;
  app.dataset.ready = String(turn);
}

// While a slider is being dragged nothing around it may change, or the browser lets go of it: only what follows from its
// value is exchanged.
function exchange(old, fresh) {
  for (const part of old.querySelectorAll("[data-follows]")) {
    const twin = fresh.querySelector(`[data-follows="${part.dataset.follows}"]`);
    if (!twin) continue;
    part.replaceChildren(...twin.childNodes);
    if ("disabled" in part) part.disabled = twin.disabled;
  }
}

let current = readState();

function top(state) {
  const tabs = [["overview", "Overview"], ["group", "Groups"], ["rollout", "Rollout"], ["find", "Find"]];
  const omitted = Store.runs.map((run) => omission(run)).filter(Boolean);
  return h(
    "div",
    { class: "top" },
    h("h1", {}, "gtpo", h("span", { class: "hint" }, ` ${Store.runs.map((run) => run.name).join(", ")}`)),
    h("nav", {}, tabs.map(([view, label]) => h("button", { class: state.view === view ? "here" : null, id: `tab-${view}`, onclick: () => go({ view }) }, label))),
    h("span", { class: "hint" }, data.live ? "live" : ""),
    h("button", { id: "theme", title: "light or dark", onclick: toggleTheme }, "◐"),
    omitted.length ? h("p", { class: "warning", id: "omitted" }, omitted.join(" ")) : null,
  );
}

function omission(run) {
  const { steps, token_details_of_steps: bare } = run.left_out;
  if (!steps && !bare) return "";
  return `${run.name}: to stay small, the page holds the rollouts of ${run.steps.length - steps} of ${run.steps.length} recorded steps, without token details in ${bare} of them.`;
}

function toggleTheme() {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
}

function move(list, value, by) {
  const place = list.indexOf(value) + by;
  return list[Math.min(Math.max(place, 0), list.length - 1)];
}

function neighbours(state) {
  const { index } = Store.runs[state.run];
  return index.rollout.filter((_, i) => index.step[i] === state.step);
}

const KEYS = {
  1: () => go({ view: "overview" }),
  2: () => go({ view: "group" }),
  3: () => go({ view: "rollout" }),
  4: () => go({ view: "find" }),
  j: () => go({ view: "rollout", rollout: move(neighbours(current), current.rollout, 1) }),
  k: () => go({ view: "rollout", rollout: move(neighbours(current), current.rollout, -1) }),
  n: () => go({ view: "group", group: move(Store.groups(current.run, current.step), current.group, 1) }),
  p: () => go({ view: "group", group: move(Store.groups(current.run, current.step), current.group, -1) }),
  "]": () => go({ step: move(Store.runs[current.run].steps, current.step, 1), group: undefined, rollout: undefined }),
  "[": () => go({ step: move(Store.runs[current.run].steps, current.step, -1), group: undefined, rollout: undefined }),
  t: toggleTheme,
  "/": async () => {
    go({ view: "find" });
    setTimeout(() => document.getElementById("find-q")?.focus(), 100);
  },
};

document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});
window.addEventListener("hashchange", render);
window.gtpoReport = { credit, factsOf, Store, go };
render();

async function follow() {
  try {
    if (await Store.refresh()) await render();
  } catch {
    // The server has ended; what is shown stays.
  }
  setTimeout(follow, 3000);
}
if (data.live) setTimeout(follow, 3000);
