// Columns fold from the last one on until the table fits; a narrow screen keeps three. All are a click away.
const board = find("#board"), frame = board.parentElement, unfold = find("#unfold");
let unfolded = false;
const showColumns = count => all("#board tr").forEach(line => { [...line.cells].forEach((cell, at) => { cell.hidden = !line.closest(".failed") && at >= count; }); });
function fold() {
  const total = all("#board thead th").length, fits = () => board.scrollWidth <= frame.clientWidth;
  board.className = "";
  showColumns(total);
  for (const closer of ["dense", "tight", "tightest"]) if (innerWidth > 860 && !fits()) board.classList.add(closer);
  let count = total;
  if (!unfolded) {
    if (innerWidth < 620) showColumns(count = Math.min(3, total));
    else while (count > 3 && !fits()) showColumns(--count);
  }
  unfold.hidden = !unfolded && count === total;
  unfold.textContent = unfolded ? "Fewer columns" : `${total - count} more columns`;
  unfold.setAttribute("aria-expanded", unfolded);
}
unfold.onclick = () => { unfolded = !unfolded; fold(); };

// Axes zoom to the contenders, the upper half; what lies beyond is drawn at the edge.
const zoom = find("#zoom"), best = [...data.rows].sort((a, b) => b.auc - a.auc), contenders = new Set(best.slice(0, Math.max(3, Math.ceil(best.length / 2))).map(row => row.expid));
const inView = expid => !zoom.checked || contenders.has(expid);
zoom.parentElement.hidden = contenders.size >= best.length;
if (contenders.size >= best.length) zoom.checked = false;
zoom.onchange = draw;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
function clipped(svg, left, top, right, bottom) {
  const width = right - left, height = bottom - top;
  return add(svg, "svg", { x: left, y: top, width, height, viewBox: `${left} ${top} ${width} ${height}`, overflow: "hidden" });
}
// Of intervals: with 0 unless that would leave them less than a third of the axis.
function withZero(ends) {
  const span = values => Math.max(...values) - Math.min(...values);
  return !zoom.checked || span([...ends, 0]) < 3 * span(ends) ? [...ends, 0] : ends;
}
// Of learning curves the upper part: what lies as far below the median as the best lies above it.
function upperPart(values) {
  const sorted = [...values].sort((a, b) => a - b), middle = sorted[Math.floor(sorted.length / 2)], top = sorted[sorted.length - 1];
  return sorted.filter(value => value >= middle - 1.5 * (top - middle));
}
