// The arithmetic of gtpo.functional, for "what if". Advantages of one group of rollouts; see docs/algorithm.md.

const MIN_DEVIATION = 1e-8;
const EPS = 1e-4;

// What credit needs to know of a recorded rollout. Where no similarities were recorded (schema 1), their mean follows
// from the shaped reward and the run's own alpha.
function factsOf(rollout, ownAlpha) {
  const alike = Object.values(rollout.similarities).map((value) => Math.min(Math.max(value, 0), 1));
  const last = rollout.turns[rollout.turns.length - 1];
  const shaped = last.r_shaped;
  return {
    passed: rollout.passed,
    masked: rollout.masked,
    outcome: last.r_acc,
    own: rollout.turns.map((turn) => turn.r_own ?? 0), // turn rewards of the user's own, from schema 3 on
    hasCall: rollout.turns.some((turn) => turn.calls.length > 0),
    invalid: rollout.turns.map((turn) => turn.invalid),
    similarity: alike.length ? alike.reduce((a, b) => a + b, 0) / alike.length : ownAlpha ? shaped / ownAlpha : 0,
  };
}

// settings: gamma, alpha, format_penalty, normalize_over, zero_uniform_groups, advantage_clip. One object per rollout:
// shaped, and each turn's format, reward, return and advantage.
function credit(group, settings) {
  const kept = group.filter((facts) => !facts.masked);
  const passes = kept.filter((facts) => facts.passed).length;
  const uniform = passes === 0 || passes === kept.length;
  const silent = settings.zero_uniform_groups && uniform; // then only turn rewards of the user's own are left
  const rows = group.map((facts) => {
    const row = rewardsOf(facts, passes, settings);
    row.returns = returnsOf(row.rewards, settings.gamma);
    row.counted = silent ? returnsOf(row.own, settings.gamma) : row.returns;
    return row;
  });
  const sets = setsOf(rows.filter((_, i) => !group[i].masked), settings.normalize_over);
  const bound = settings.advantage_clip || Infinity;
  rows.forEach((row, i) => {
    row.advantages = row.counted.map((value, j) => {
      if (group[i].masked) return 0;
      const { origin, mean, deviation } = sets[settings.normalize_over === "same_turn" ? j : 0];
      const scale = silent ? 1 : deviation + EPS; // what is left of a silenced group is centred alone
      const advantage = deviation < MIN_DEVIATION ? 0 : (value - origin - mean) / scale;
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
  const target = !facts.passed && !facts.masked && passes > 0 ? settings.alpha * facts.similarity : 0;
  const shaped = target > 0 ? Math.max(target - facts.outcome, 0) : 0;
  const accuracy = facts.masked ? 0 : facts.outcome + shaped;
  const own = facts.own.map((value) => (facts.masked ? 0 : value));
  const rewards = format.map((penalty, j) => penalty + own[j] + (j === turns - 1 ? accuracy : 0));
  return { shaped, format, own, rewards };
}

function returnsOf(rewards, gamma) {
  const returns = new Array(rewards.length).fill(0);
  let ahead = 0;
  for (let j = rewards.length - 1; j >= 0; j--) {
    ahead = rewards[j] + gamma * ahead;
    returns[j] = ahead;
  }
  return returns;
}

// The sets over which returns are normalised; measured from their smallest member, so that equal returns are 0 apart.
function setsOf(rows, normalizeOver) {
  let members;
  if (normalizeOver === "same_turn") {
    const longest = Math.max(0, ...rows.map((row) => row.counted.length));
    members = Array.from({ length: longest }, (_, j) =>
      rows.filter((row) => row.counted.length > j).map((row) => row.counted[j]),
    );
  } else {
    members = [rows.flatMap((row) => (normalizeOver === "first_turns" ? row.counted.slice(0, 1) : row.counted))];
  }
  return members.map((values) => {
    const origin = values.length ? Math.min(...values) : 0;
    const mean = values.reduce((sum, value) => sum + value - origin, 0) / Math.max(values.length, 1);
    const squares = values.reduce((sum, value) => sum + (value - origin - mean) ** 2, 0);
    return { origin, mean, deviation: Math.sqrt(squares / Math.max(values.length - 1, 1)), size: values.length };
  });
}
