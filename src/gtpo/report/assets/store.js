// The data of the page. Rollouts are unpacked step by step, when they are looked at.

const data = JSON.parse(document.getElementById("data").textContent);
const unpacked = new Map();

const Store = {
  get runs() {
    return data.runs;
  },
  // The rollouts of a step, or null if they were left out of the page.
  rollouts(run, step) {
    const key = `${run}/${step}`;
    if (!unpacked.has(key)) {
      const promise = fetchPacked(run, step).then((text) => (text === null ? null : unpack(text)));
      promise.catch(() => unpacked.delete(key));
      unpacked.set(key, promise);
      if (unpacked.size > 40) unpacked.delete(unpacked.keys().next().value);
    }
    return unpacked.get(key);
  },
  groups(run, step) {
    const { index } = data.runs[run];
    const found = [];
    index.step.forEach((value, i) => {
      if (value === step && !found.includes(index.group[i])) found.push(index.group[i]);
    });
    return found;
  },
  // Asks for what is new; true if there is.
  async refresh() {
    const stamps = data.runs.map((run) => run.stamp).join(",");
    const answer = await fetch(`runs?stamps=${encodeURIComponent(stamps)}`);
    if (answer.status !== 200) return false;
    data.runs = await answer.json();
    unpacked.clear();
    return true;
  },
};

async function fetchPacked(run, step) {
  if (!data.live) return data.runs[run].packed[step] ?? null;
  const answer = await fetch(`step?run=${run}&step=${step}`);
  if (!answer.ok) throw new Error(`step ${step}: ${await answer.text()}`);
  return answer.text();
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// What docs/metrics.md says of a figure.
function meaningOf(name) {
  const glossary = data.glossary;
  if (glossary[name]) return glossary[name];
  const pattern = Object.keys(glossary).find((key) => {
    const shape = key.replace(/[.+?^${}()|[\]\\]/g, "\\$&").replace("*", ".+").replace("STATUS", ".+");
    return (key.includes("*") || key.includes("STATUS")) && new RegExp(`^${shape}$`).test(name);
  });
  return pattern ? glossary[pattern] : { unit: "", meaning: "logged by TRL; see the documentation of its GRPOTrainer" };
}
