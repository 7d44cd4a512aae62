// The arithmetic of gtpo.functional, for "what if". Advantages of one group of rollouts; see docs/algorithm.md.

const MIN_DEVIATION = 1e-8;
const EPS = 1e-4;

// What credit needs to know of a recorded rollout. Where no similarities were recorded (schema 1), their mean follows
// from the shaped reward and the run's own alpha.
function factsOf(rollout, ownAlpha) {
  const alike = Object.values(rollout.similarities).map((value) => Math.min(Math.max(value, 0), 1));
  const shaped = rollout.turns[rollout.turns.length - 1].r_shaped;
  return {
    passed: rollout.passed,
    masked: rollout.masked,
    hasCall: rollout.turns.some((turn) => turn.calls.length > 0),
    invalid: rollout.turns.map((turn) => turn.invalid),
    similarity: alike.length ? alike.reduce((a, b) => a + b, 0) / alike.length : ownAlpha ? shaped / ownAlpha : 0,
  };
}

// settings: gamma, alpha, format_penalty, normalize_over, zero_uniform_groups, advantage_clip. One object per rollout:
// shaped, and each turn's format, accuracy, reward, return and advantage.
function credit(group, settings) {
  const kept = group.filter((facts) => !facts.masked);
  const passes = kept.filter((facts) => facts.passed).length;
  const rows = group.map((facts) => rewardsOf(facts, passes, settings));
  for (const row of rows) {
    row.returns = new Array(row.rewards.length).fill(0);
    let ahead = 0;
    for (let j = row.rewards.length - 1; j >= 0; j--) {
      ahead = row.rewards[j] + settings.gamma * ahead;
      row.returns[j] = ahead;
    }
  }
  const counted = rows.filter((_, i) => !group[i].masked);
  const sets = setsOf(counted, settings.normalize_over);
  const uniform = passes === 0 || passes === kept.length;
  const bound = settings.advantage_clip || Infinity;
  const silent = settings.zero_uniform_groups && uniform;
  rows.forEach((row, i) => {
    row.advantages = row.returns.map((value, j) => {
      if (group[i].masked || silent) return 0;
      const { origin, mean, deviation } = sets[settings.normalize_over === "same_turn" ? j : 0];
      const advantage = deviation < MIN_DEVIATION ? 0 : (value - origin - mean) / (deviation + EPS);
      return Math.min(Math.max(advantage, -bound), bound);
    });
  });
  return { rows, sets, passes, size: kept.length, uniform };
}

function rewardsOf(facts, passes, settings) {
  const turns = facts.invalid.length;
  const format = facts.invalid.map((bad, j) =>
    !facts.masked && (bad || (j === 0 && !facts.hasCall)) ? settings.format_penalty : 0,
  );
  // facts.similarity is the mean over the passing rollouts of the group, 0 for one without code.
  const shaped = !facts.passed && !facts.masked && passes > 0 ? settings.alpha * facts.similarity : 0;
  const accuracy = facts.masked ? 0 : facts.passed ? 1 : shaped;
  const rewards = format.map((penalty, j) => penalty + (j === turns - 1 ? accuracy : 0));
  return { shaped, format, rewards };
}

// The sets over which returns are normalised; measured from their smallest member, so that equal returns are 0 apart.
function setsOf(rows, normalizeOver) {
  let members;
  if (normalizeOver === "same_turn") {
    const longest = Math.max(0, ...rows.map((row) => row.returns.length));
    members = Array.from({ length: longest }, (_, j) =>
      rows.filter((row) => row.returns.length > j).map((row) => row.returns[j]),
    );
  } else {
    members = [rows.flatMap((row) => (normalizeOver === "first_turns" ? row.returns.slice(0, 1) : row.returns))];
  }
  return members.map((values) => {
    const origin = values.length ? Math.min(...values) : 0;
    const mean = values.reduce((sum, value) => sum + value - origin, 0) / Math.max(values.length, 1);
    const squares = values.reduce((sum, value) => sum + (value - origin - mean) ** 2, 0);
    return { origin, mean, deviation: Math.sqrt(squares / Math.max(values.length - 1, 1)), size: values.length };
  });
}
