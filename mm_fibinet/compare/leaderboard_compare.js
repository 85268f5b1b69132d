// Comparison with any row: the figures of every two experiments are in the page, so nothing is estimated anew.
const places = Object.fromEntries(all("#board thead th").map((head, at) => [head.dataset.key, at]));
const shownAs = {
  difference: row => row.difference == null ? "-" : plain(row.difference) + (row.low > 0 ? " ▲" : row.high < 0 ? " ▼" : ""),
  low: row => row.low == null ? "-" : `${plain(row.low)} to ${plain(row.high)}`,
  p_delong: row => row.p_delong == null ? "-" : chance(row.p_delong),
  p_bootstrap: row => row.p_bootstrap == null ? "-" : chanceUsers(row.p_bootstrap),
};
const plain = value => (value < 0 ? "-" : "+") + Math.abs(value).toFixed(4);
function compareWith(expid) {
  data.baseline = expid;
  for (const row of data.rows) {
    const [difference, low, high, p_delong, p_bootstrap] = data.pairs[row.expid]?.[expid] ?? [];
    Object.assign(row, { difference, low, high, p_delong, p_bootstrap });
  }
  for (const line of all("#rows tr")) {
    const row = rowOf[line.dataset.expid];
    for (const [key, show] of Object.entries(shownAs)) if (key in places) {
      const cell = line.cells[places[key]];
      cell.textContent = show(row);
      cell.dataset.sort = row[key] ?? "";
    }
    const button = find(".vs", line);
    button.setAttribute("aria-pressed", row.expid === expid);
    button.textContent = row.expid === expid ? "baseline" : "vs";
  }
  const fact = all(".facts dt").find(term => term.textContent === "Baseline");
  if (fact) fact.nextElementSibling.textContent = expid;
  find("#forest h2").textContent = `Difference to ${expid}`;
  tellVerdict();
  draw();
}
function rowButton(className, text, label, act) {
  const button = Object.assign(document.createElement("button"), { type: "button", className, textContent: text });
  button.setAttribute("aria-label", label);
  explain(button, label);
  button.addEventListener("click", event => { event.stopPropagation(); act(); });
  return button;
}
for (const line of all("#rows tr")) {
  line.cells[places.low]?.classList.add("interval");
  const expid = line.dataset.expid, first = line.cells[0], buttons = document.createElement("span");
  find(".tag", first)?.remove();
  buttons.className = "buttons";
  const vs = rowButton("tag vs", expid === data.baseline ? "baseline" : "vs", `Compare the others with ${expid}`, () => compareWith(expid));
  vs.setAttribute("aria-pressed", expid === data.baseline);
  buttons.append(vs);
  if (data.details[expid]) buttons.append(rowButton("tag", "i", `Settings and manifest of ${expid}`, () => showDetails(expid)));
  first.append(buttons);
}

// Settings and manifest: first what differs from the experiment that the others are compared with.
const written = value => typeof value === "string" ? value : JSON.stringify(value);
function showDetails(expid) {
  const { settings, manifest } = data.details[expid], other = expid === data.baseline ? null : data.details[data.baseline]?.settings;
  const dialog = find("#details"), [list, rest] = all("dl", dialog);
  find("h2", dialog).textContent = expid;
  list.replaceChildren();
  rest.replaceChildren();
  const line = (host, key, value, before) => host.append(
    Object.assign(document.createElement("dt"), { textContent: key }),
    Object.assign(document.createElement("dd"), { textContent: before === undefined ? written(value) : `${written(value)}  (${data.baseline}: ${before === null ? "not set" : written(before)})` }),
  );
  const differs = key => other && written(settings[key]) !== written(other[key] ?? null) && !["model_id", "seed"].includes(key);
  for (const key of Object.keys(settings)) differs(key) ? line(list, key, settings[key], other[key] ?? null) : line(rest, key, settings[key]);
  list.hidden = find("#differing").hidden = !list.children.length;
  find("#differing").textContent = `Other settings than ${data.baseline}`;
  find("pre", dialog).textContent = JSON.stringify(manifest, null, 2);
  dialog.showModal();
  dialog.scrollTop = 0;
}
find("#details form").addEventListener("submit", hideTip);
find("#details").addEventListener("click", event => { if (event.target === event.currentTarget) event.currentTarget.close(); });
