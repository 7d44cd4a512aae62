// Line charts over steps, drawn as SVG: a line a series, a cross-hair that reads all of them.

const COLORS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6bb1", "#666666"];
const WIDTH = 340;
const HEIGHT = 170;
const EDGE = { left: 44, right: 8, top: 8, bottom: 22 };

// series: [{name, points: [[step, value], ...], dashed}]
function lineChart(title, series, options = {}) {
  const drawn = series.filter((one) => one.points.length);
  const { unit, meaning } = options.meaning ?? meaningOf(title);
  const head = h(
    "figcaption",
    { title: `${meaning}${unit ? ` [${unit}]` : ""}` },
    h("b", {}, options.label ?? title),
    unit ? h("span", { class: "unit" }, ` ${unit}`) : null,
  );
  const figure = h("figure", { class: "chart", "data-chart": title }, head);
  if (!drawn.length) {
    figure.append(h("p", { class: "empty" }, "not logged"));
    return figure;
  }
  const steps = drawn.flatMap((one) => one.points.map((point) => point[0]));
  const values = drawn.flatMap((one) => one.points.map((point) => point[1]));
  const x = scale(Math.min(...steps), Math.max(...steps), EDGE.left, WIDTH - EDGE.right);
  const [low, high] = range(values);
  const y = scale(low, high, HEIGHT - EDGE.bottom, EDGE.top);
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title} over steps` });
  for (const tick of ticks(low, high)) {
    drawing.append(
      svg("line", { class: "grid", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y(tick), y2: y(tick) }),
      svg("text", { class: "tick", x: EDGE.left - 4, y: y(tick) + 3, "text-anchor": "end" }, compact(tick)),
    );
  }
  for (const tick of ticks(x.from, x.to, 4).filter(Number.isInteger)) {
    drawing.append(svg("text", { class: "tick", x: x(tick), y: HEIGHT - 6, "text-anchor": "middle" }, String(tick)));
  }
  drawn.forEach((one) => {
    const color = one.color ?? COLORS[series.indexOf(one) % COLORS.length];
    const line = one.points.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" ");
    drawing.append(
      one.points.length > 1
        ? svg("polyline", { points: line, stroke: color, "stroke-dasharray": one.dashed ? "5 3" : null })
        : svg("circle", { cx: x(one.points[0][0]), cy: y(one.points[0][1]), r: 3, fill: color }),
    );
  });
  const hair = svg("line", { class: "hair", y1: EDGE.top, y2: HEIGHT - EDGE.bottom, visibility: "hidden" });
  const reading = h("div", { class: "reading" });
  drawing.append(hair);
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const step = Math.round(x.back(((event.clientX - box.left) / box.width) * WIDTH));
    hair.setAttribute("visibility", "visible");
    hair.setAttribute("x1", x(step));
    hair.setAttribute("x2", x(step));
    const read = drawn.map((one) => [one, one.points.find((point) => point[0] === step)]).filter(([, point]) => point);
    reading.replaceChildren(
      `step ${step}`,
      ...read.map(([one, point]) => h("span", {}, legendMark(one, series), ` ${one.name} ${number(point[1])}`)),
    );
  });
  drawing.addEventListener("pointerleave", () => {
    hair.setAttribute("visibility", "hidden");
    reading.replaceChildren(...legend(drawn, series));
  });
  if (options.onstep) {
    drawing.addEventListener("click", (event) => {
      const box = drawing.getBoundingClientRect();
      options.onstep(Math.round(x.back(((event.clientX - box.left) / box.width) * WIDTH)));
    });
  }
  reading.append(...legend(drawn, series));
  figure.append(drawing, reading);
  return figure;
}

function legend(drawn, series) {
  return drawn.length > 1 ? drawn.map((one) => h("span", {}, legendMark(one, series), ` ${one.name}`)) : [];
}

function legendMark(one, series) {
  const color = one.color ?? COLORS[series.indexOf(one) % COLORS.length];
  return h("i", { class: "mark", style: { background: color } });
}

function scale(from, to, start, end) {
  const width = to - from || 1;
  const map = (value) => start + ((value - from) / width) * (end - start);
  map.back = (place) => from + ((place - start) / (end - start)) * width;
  map.from = from;
  map.to = to;
  return map;
}

function range(values) {
  let low = Math.min(0, ...values);
  let high = Math.max(...values);
  if (high <= low) high = low + 1;
  if (low >= 0 && high <= 1 && high > 0.5) high = 1;
  return [low, high];
}

function ticks(low, high, count = 4) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-6; tick += step) found.push(Math.abs(tick) < step * 1e-6 ? 0 : tick);
  return found;
}

function compact(value) {
  if (Math.abs(value) >= 1e6) return `${value / 1e6}M`;
  if (Math.abs(value) >= 1e4) return `${value / 1e3}k`;
  return String(Number(value.toPrecision(3)));
}
