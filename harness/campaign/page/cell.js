// A cell, opened: its claims, entries and log in a dialog.

const dialog = document.querySelector("dialog");

function drawClaims(run, column) {
  if (!run.claims.length) return el("p", { class: "faint" }, "No claim was reached.");
  const list = (claims) => el("ul", { class: "claims" }, claims.map((claim) => {
    const [name, outcome, by, message] = claim.map(text);
    return el("li", {}, el("span", { class: `mark ${outcome}` }, MARKS[outcome] || outcome), name,
      by ? el("span", { class: "faint" }, " [", functionOf(column, by), "]") : null, message ? el("pre", {}, message) : null);
  }));
  const held = run.claims.filter((claim) => text(claim[1]) === "passed");
  const others = run.claims.filter((claim) => text(claim[1]) !== "passed");
  const words = held.length === run.claims.length ? `All ${held.length} hold` : `${held.length} of ${run.claims.length} hold`;
  return el("div", {}, list(others), held.length ? el("details", {}, el("summary", {}, words), list(held)) : null);
}

function drawLog(run) {
  const lines = run.log.map((number) => {
    const line = text(number);
    const kind = COMPLAINT.test(line) ? "complaint" : line.includes("hugepfn: checkpoint") ? "checkpoint" : "";
    return el("span", { class: kind || null }, line + "\n");
  });
  return lines.length ? el("pre", { class: "log" }, lines) : el("p", { class: "faint" }, "Nothing.");
}

function drawRun(row, run, column, name) {
  const reason = run.reason !== undefined ? text(run.reason) : "";
  return [reason ? el("pre", { class: "reason" }, reason) : null,
    el("h3", {}, `Claims${name}`), drawClaims(run, column),
    comparing ? null : el("h3", {}, "Entries"), comparing ? null : drawEntries(row, [run], [column]),
    run.beyond ? el("p", { class: "faint" }, `${run.beyond} more rows are not in this page.`) : null,
    el("h3", {}, `Kernel log${name}`), drawLog(run)];
}

function body(row, number) {
  const cells = data.cells[row];
  if (comparing) {
    return [el("h3", {}, "Entries"), drawEntries(row, cells.map((cell) => cell.runs[0]), data.columns),
      cells.map((cell, side) => cell.runs[0] ? drawRun(row, cell.runs[0], data.columns[side], ` in ${"AB"[side]}: ${data.columns[side].label}`) :
        el("p", {}, `${"AB"[side]}: ${cell.reason || "no result"}`))].flat(3);
  }
  const cell = cells[number];
  if (!cell.runs.length) return [el("pre", { class: "reason" }, cell.reason)];
  if (cell.runs.length === 1) return drawRun(row, cell.runs[0], data.columns[number], "");
  return cell.runs.flatMap((run, turn) => [el("h2", {}, `Run ${turn + 1}: ${run.outcome}`), ...drawRun(row, run, data.columns[number], "")]);
}

function heading(row, number) {
  const one = data.cases[row];
  const outcome = (at) => el("span", { class: data.cells[row][at].mark }, data.cells[row][at].word);
  const column = data.columns[number];
  return el("div", {}, el("h2", { id: "opened" }, comparing ? [`${one.title}: A `, outcome(0), ", B ", outcome(1)] : [`${one.title} on ${column.label}: `, outcome(number)]),
    comparing || !column.subject ? null : el("div", {}, column.subject), el("span", { class: "faint" }, one.claim));
}

/** Draws a cell.
 * @param go called with what the address should be: another cell, or nothing where the dialog is closed. */
function openCell(row, number, go) {
  const mail = el("div", { class: "mail" });
  const other = (step, words) => comparing ? null : el("button", { type: "button", disabled: data.columns[number + step] ? null : "", onclick: () => go(nameOf(row, number + step)) }, words);
  const step = data.kind === "series" ? "patch" : "kernel";
  dialog.replaceChildren(
    el("header", {}, heading(row, number), el("div", { class: "buttons" },
      copyButton(el("button", { type: "button", class: "copy" }, "copy as text for mail"), () => mail, () => mailOf(row, number)),
      other(-1, `previous ${step}`), other(1, `next ${step}`),
      el("button", { type: "button", class: "close", autofocus: "", onclick: () => dialog.close() }, "close"))),
    el("div", { class: "body", tabindex: "0" }, mail,
      el("p", { class: "again" }, (comparing ? data.columns : [data.columns[number]]).map((each) => drawCommand(commandOf(row, each).map(quoted)))),
      ...body(row, number).filter((child) => child !== null)));
  if (!dialog.open) dialog.showModal();
  dialog.onclose = () => go({});
}
