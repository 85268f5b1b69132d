// Figures of the studies: panels of lines over groups or numbers on the same axes, in the colours of the charts above.
function drawFigure(section, figure) {
  const host = find(".panels", section), panels = Object.entries(figure.panels);
  while (host.children.length < panels.length) host.append(Object.assign(document.createElement("div"), { className: "panel" }));
  const shown = panels.flatMap(([, series]) => Object.entries(series)), seen = shown.filter(([expid]) => inView(expid));
  const points = (seen.some(([, line]) => line.length) ? seen : shown).flatMap(([, line]) => line);
  if (points.length) panels.forEach(([title, series], at) => drawPanel(host.children[at], figure, title, series, points));
}
function panelScales(figure, points, box) {
  const xs = points.map(point => point[0]), ys = points.flatMap(point => [point[1], point[2], point[3]]).filter(value => value != null);
  if (figure.diagonal) {
    const most = Math.max(...xs, ...ys) * 1.05;
    return { x: linear(0, most, box.left, box.right), y: linear(0, most, box.bottom, box.top), xs: [0, most], ys: [0, most] };
  }
  const [low, high] = padded(ys, 0.06), y = linear(low, high, box.bottom, box.top);
  if (figure.ticks.length) return { x: linear(-0.5, figure.ticks.length - 0.5, box.left, box.right), y, ys: [low, high] };
  const least = Math.min(...xs), most = Math.max(...xs);
  if (!figure.log) { const [from, to] = padded(xs, 0.04); return { x: linear(from, to, box.left, box.right), y, xs: [from, to], ys: [low, high] }; }
  const scale = linear(Math.log(least / 1.15), Math.log(most * 1.15), box.left, box.right);
  return { x: value => scale(Math.log(value)), y, xs: [least / 1.15, most * 1.15], ys: [low, high] };
}
function panelAxes(svg, figure, scales, box) {
  const vertical = niceTicks(...scales.ys, 6);
  for (const value of vertical.ticks) {
    add(svg, "line", { class: "grid", x1: box.left, x2: box.right, y1: scales.y(value), y2: scales.y(value) });
    add(svg, "text", { x: box.left - 8, y: scales.y(value) + 4, "text-anchor": "end" }, value.toFixed(vertical.digits));
  }
  const numbers = () => (figure.log ? logTicks(...scales.xs, false) : niceTicks(...scales.xs, box.right < 420 ? 4 : 7).ticks).map(value => [value, short(value)]);
  for (const [value, text] of figure.ticks.length ? figure.ticks : numbers()) add(svg, "text", { class: "x-tick", x: scales.x(value), y: box.bottom + 18, "text-anchor": "middle" }, text);
  add(svg, "text", { x: (box.left + box.right) / 2, y: box.bottom + 36, "text-anchor": "middle" }, figure.x);
  if (figure.diagonal) add(svg, "line", { class: "zero", x1: scales.x(0), y1: scales.y(0), x2: scales.x(scales.xs[1]), y2: scales.y(scales.ys[1]) });
}
function drawPanel(host, figure, title, series, inAll) {
  if (!host.children.length) {
    if (title) host.append(Object.assign(document.createElement("h3"), { textContent: title }));
    add(host, "svg", { role: "group", "aria-label": `${figure.y} by ${figure.x}${title && `: ${title}`}` });
  }
  const svg = find("svg", host), width = host.clientWidth || 320, height = 300;
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.style.height = `${height}px`;
  const shown = Object.entries(series).filter(([, points]) => points.length), box = { left: 46, right: width - 12, top: 10, bottom: height - 44 };
  const scales = panelScales(figure, inAll, box);
  panelAxes(svg, figure, scales, box);
  const rank = expid => expid === lit ? 2 : slots.includes(expid) ? 1 : 0, ordered = [...shown].sort((a, b) => rank(a[0]) - rank(b[0]));
  const tickText = Object.fromEntries(figure.ticks), inside = clipped(svg, box.left - 4, box.top - 8, box.right + 8, box.bottom + 6);
  ordered.forEach(([expid, points], place) => {
    const ink = inked(expid), strong = rank(expid), dodge = figure.ticks.length ? (place - (ordered.length - 1) / 2) * Math.min(8, 40 / ordered.length) : 0;
    const at = point => scales.x(point[0]) + dodge;
    add(inside, "polyline", { "data-expid": expid, fill: "none", stroke: ink, "stroke-width": strong ? 2 : 1.2, opacity: strong ? 1 : 0.55, "stroke-dasharray": expid === data.baseline ? "6 4" : "none", points: points.map(point => `${at(point)},${scales.y(point[1])}`).join(" ") });
    for (const point of points) {
      const [x, y, low, high] = point, where = tickText[x] ?? (figure.diagonal ? x.toFixed(3) : short(x));
      const text = `${expid}\n${figure.x}: ${where}\n${figure.y} ${fixed(y)}${low == null ? "" : ` (${fixed(low)} to ${fixed(high)})`}`;
      const group = mark(inside, expid, text);
      group.setAttribute("tabindex", -1);
      if (low != null && strong) add(group, "line", { x1: at(point), x2: at(point), y1: scales.y(low), y2: scales.y(high), stroke: ink, "stroke-width": 1.5 });
      add(group, "circle", { class: "ring", cx: at(point), cy: scales.y(y), r: strong ? 4 : 3, fill: ink, opacity: strong ? 1 : 0.6 });
    }
  });
}
function drawStudies() {
  for (const [name, figure] of Object.entries(data.studies)) if (figure) drawFigure(find(`#study-${name}`), figure);
}
