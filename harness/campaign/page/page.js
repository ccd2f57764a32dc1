// The table, its filters, and the address that holds both them and the cell that is open.

const table = document.querySelector(".matrix");
const form = document.querySelector(".filters");
const links = []; // [row][column]

function countsOf(column) {
  const counts = new Map(["PASS", "FIXED", "SKIP", "EXPECTED", "BUG", "UNKNOWN", "ERROR", "FLAKE", "FAIL"].map((mark) => [mark, 0]));
  for (const row of data.cells) counts.set(row[column].mark, counts.get(row[column].mark) + 1);
  const words = { FIXED: "pass*", UNKNOWN: "?", FAIL: "FAIL" };
  return [...counts].filter(([, count]) => count).map(([mark, count]) => `${count}\u00a0${words[mark] || mark.toLowerCase()}`).join(", ");
}

function drawHeading(column, number) {
  const side = comparing ? `${"AB"[number]}: ` : "";
  return el("th", { scope: "col", title: [ranOn(column), column.trouble].filter(Boolean).join("; ") }, breakable(side + column.label),
    column.subject ? el("small", { class: "subject" }, column.subject) : null, el("small", {}, column.release || ""), el("small", {}, countsOf(number)));
}

function drawCell(cell, row, number) {
  const link = el("a", {
    href: addressOf(nameOf(row, number)), tabindex: row || number ? "-1" : "0",
    "aria-label": `${data.cases[row].title} on ${data.columns[number].label}: ${cell.word}`, title: cell.reason || null,
    onclick: (event) => follow(event, nameOf(row, number)), onkeydown: (event) => move(event, row, number),
  }, cell.word, cell.note ? el("sup", {}, `\u00a0${cell.note}`) : null);
  links[row][number] = link;
  return el("td", { class: cell.mark }, link);
}

const TOLD = 6; // of each kind

/** What differs in a case: the entries, which say most, come first. */
function told(one) {
  const list = (items, draw, words) => el("ul", {}, items.slice(0, TOLD).map((item) => el("li", {}, draw(item))),
    items.length > TOLD ? el("li", { class: "faint" }, `and ${items.length - TOLD} more ${words}`) : null);
  const [parts, rest] = [[], []];
  if (one.entries.length) parts.push(el("p", {}, "Entries, in B against A:"), list(one.entries, ([where, place, appeared, vanished, others]) => el("span", { class: "mono" }, `at ${where}: ${place} `,
    drawBits([...appeared.map((name) => ["+", name]), ...vanished.map((name) => ["-", name])]).flatMap((node) => [node, " "]), others), "entries"));
  const claims = new Map();
  for (const [what, name, by, before, after] of one.differs) {
    const answers = `A ${before}, B ${after}`;
    if (what !== "claim") rest.push(el("p", {}, `${what}${name ? ` ${name}` : ""}: ${answers}`));
    else claims.set(answers, [...(claims.get(answers) || []), [name, by]]);
  }
  for (const [answers, named] of claims) parts.push(el("p", {}, `Claims: ${answers}`), list(named, ([name, by]) => [name, by ? el("span", { class: "faint" }, " [", functionOf(data.columns[1], by), "]") : null], "claims"));
  return el("td", { class: "told" }, parts, rest);
}

function drawTable() {
  table.classList.add(data.kind);
  table.append(el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "scenario"), data.columns.map(drawHeading),
    comparing ? el("th", { scope: "col" }, "what differs") : null)));
  const body = el("tbody");
  data.cases.forEach((one, row) => {
    links.push([]);
    body.append(el("tr", {}, el("th", { scope: "row", title: one.claim },
      breakable(one.scenario), el("span", { class: "level" }, one.title.slice(one.scenario.length))),
      data.cells[row].map((cell, number) => drawCell(cell, row, number)), comparing ? told(one) : null));
  });
  table.append(body);
}

const visible = (row) => !links[row][0].closest("tr").hidden;

/** Arrow keys go from cell to cell; the space bar opens one, as Enter does. */
function move(event, row, number) {
  if (event.key === " ") {
    event.preventDefault();
    event.target.click();
  }
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  let [at, across] = [row + step[0], number + step[1]];
  while (links[at] && !visible(at)) at += step[0];
  const target = links[at] && links[at][across];
  if (target) focusOn(target);
}

function focusOn(target) {
  for (const link of table.querySelectorAll('a[tabindex="0"]')) link.tabIndex = -1;
  target.tabIndex = 0;
  target.focus();
}

// --- the address -------------------------------------------------------------------------------

const filters = ({ rows, scenario }) => ({ rows, scenario });

/** A plain click goes where the link points and keeps the filters. Any other click is the browser's. */
function follow(event, wanted) {
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  history.pushState(null, "", addressOf({ ...filters(asked()), ...wanted }));
  show();
}

function go(wanted) {
  history.replaceState(null, "", addressOf({ ...filters(asked()), ...wanted }));
  show();
}

function filter({ rows = "all", scenario = "" }) {
  if (form.rows.value !== rows) form.rows.value = rows;
  if (form.rows.value !== rows) form.rows.value = "all"; // the address is a person's
  if (form.scenario.value.trim() !== scenario) form.scenario.value = scenario;
  let shown = 0;
  data.cases.forEach((one, row) => {
    const marks = data.cells[row].map((cell) => cell.mark);
    const wanted = { all: true, notable: marks.some((mark) => mark !== "PASS" && mark !== "SKIP"), differing: new Set(marks).size > 1 };
    const shows = wanted[form.rows.value] && one.title.toLowerCase().includes(scenario.toLowerCase());
    links[row][0].closest("tr").hidden = !shows;
    shown += shows;
  });
  const current = table.querySelector('a[tabindex="0"]');
  const first = links.find((_, row) => visible(row));
  if (first && current && current.closest("tr").hidden) {
    current.tabIndex = -1;
    first[0].tabIndex = 0;
  }
  return shown;
}

let opened = null; // the link of the cell that is open

/** Makes the page what the address says. */
function show() {
  const wanted = asked();
  const shown = filter(wanted);
  const row = data.cases.findIndex((one) => one.name === wanted.case);
  const number = comparing ? 0 : data.columns.findIndex((column) => column.name === wanted.kernel);
  const missing = wanted.case && (row < 0 || number < 0) ? `This page has no ${wanted.case}${wanted.kernel ? ` on ${wanted.kernel}` : ""}.` : "";
  form.querySelector("output").textContent = [shown < data.cases.length ? `${shown} of ${data.cases.length} rows` : "", missing].filter(Boolean).join("; ");
  if (wanted.case && !missing) {
    opened = links[row][number];
    openCell(row, number, go);
  } else {
    if (dialog.open) dialog.close();
    if (opened) focusOn(opened);
    opened = null;
  }
}

// --- the page ----------------------------------------------------------------------------------

function drawNotes() {
  const notes = document.querySelector(".notes");
  if (data.notes.length) notes.append(el("h3", {}, "Reasons"), el("ol", {}, data.notes.map((note) => el("li", {}, note))));
  for (const [title, lines] of data.lists) if (lines.length) notes.append(el("h3", {}, title), el("ul", {}, lines.map((line) => el("li", {}, line))));
}

function drawChanges() {
  const link = ([row, number, words, reason]) => el("li", {}, el("a", { href: addressOf(nameOf(row, number)), onclick: (event) => follow(event, nameOf(row, number)) }, words),
    reason ? `: ${reason}` : null);
  document.querySelector(".changes").append(el("h3", {}, "What changes"),
    data.changes.length ? el("ul", {}, data.changes.map(link)) : el("p", {}, "Nothing: every case has the same answer at every patch."));
}

document.querySelector(".about").textContent = `${data.about} Open a cell to see the entries at every checkpoint, the claims and the kernel log.`;
if (data.cases.length) drawTable();
else document.querySelector(".scroll").remove();
if (data.changes) drawChanges();
drawNotes();
document.querySelector(".made code").replaceWith(drawCommand(data.command.split(" ")));
form.rows.lastElementChild.textContent = data.kind === "series" ? "where something changes" : "where kernels differ";
if (comparing) form.rows.closest("label").hidden = true;
const mail = el("div", { class: "mail" });
form.after(mail);
copyButton(form.querySelector(".copy"), () => mail, () => data.text);
form.addEventListener("input", () => go({ rows: form.rows.value === "all" ? "" : form.rows.value, scenario: form.scenario.value.trim() }));
form.addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("hashchange", show);
window.addEventListener("popstate", show);
show();
