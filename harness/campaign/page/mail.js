// Text for a mail: plain, at most 72 columns, so that it survives every mailer.

const COLUMNS = 72;

/** Text as lines; further lines of a paragraph are indented by two more columns. */
function wrapped(paragraphs, indent = "") {
  const lines = [];
  for (const paragraph of paragraphs.split("\n")) {
    const own = indent + /^ */.exec(paragraph)[0];
    let line = own;
    for (const word of paragraph.trim().split(" ")) {
      let rest = word;
      const bare = () => line.trim() === "";
      if (!bare() && line.length + 1 + rest.length > COLUMNS) {
        lines.push(line);
        line = `${own}  `;
      }
      if (!bare()) line += " ";
      while (line.length + rest.length > COLUMNS) { // a word that is longer than a line
        const room = COLUMNS - line.length;
        lines.push(line + rest.slice(0, room));
        [rest, line] = [rest.slice(room), `${own}  `];
      }
      line += rest;
    }
    lines.push(line.trimEnd());
  }
  return lines;
}

/** A command in lines that a shell takes as one. A word that does not fit goes on at the start of the next line. */
function shellLines(words) {
  const lines = [];
  let line = " ";
  for (const word of words) {
    const pieces = quoted(word).length <= COLUMNS - 6 ? [word] : word.match(/.{1,30}/gsu);
    pieces.forEach((piece, number) => {
      const shown = quoted(piece);
      const glue = number ? "" : " ";
      if (line.trim() && line.length + glue.length + shown.length > COLUMNS - 2) {
        lines.push(line + (number ? "\\" : " \\"));
        line = number ? shown : `    ${shown}`;
      } else line += glue + shown;
    });
  }
  return [...lines, line];
}

function ranOn(column) {
  const machine = column.qemu ? `QEMU ${column.qemu} (${column.accel})` : "";
  const linux = column.release ? `Linux ${column.release}` : "";
  return [`${column.label} ${column.subject}`.trim(), linux, machine, column.smp > 1 ? `${column.smp} vCPUs` : "", column.append].filter(Boolean).join(", ");
}

/** The claims that are not ok. What neighbours have in common stands once, after the last of them. */
function claimLines(column, run) {
  const broken = run.claims.map((claim) => claim.map(text)).filter(([, outcome]) => outcome !== "passed");
  const seen = ([, , by, message]) => [by && `[${(column.functions[by] || [by])[0]}]`, message.split("\n")[0]].filter(Boolean).flatMap((line) => wrapped(line, "    "));
  return broken.flatMap((claim, at) => {
    const after = seen(claim);
    const next = broken[at + 1];
    return [...wrapped(`${MARKS[claim[1]] || claim[1]}: ${claim[0]}`, "  "), ...(next && seen(next).join() === after.join() ? [] : after)];
  });
}

const MAIL_ENTRIES = 40;

/** The entries that differ in a comparison, else all of them. */
function entryLines(runs) {
  const lines = [];
  let left = MAIL_ENTRIES;
  for (const stop of stopsOfRuns(runs)) {
    const entries = stop.entries.filter((entry) => entry.side !== "A = B");
    if (entries.length && left > 0) lines.push(`  at ${stopName(stop)}`);
    for (const entry of entries) if (left-- > 0) lines.push(
      ...wrapped([entry.side, entry.process, placeOf(entry), entry.level, entry.raw].filter(Boolean).join(" "), "    "),
      ...wrapped(signed(entry).map((pair) => pair.join("")).join(" ") || "nothing mapped", "      "));
  }
  return left < 0 ? [...lines, `  and ${-left} more entries`] : lines;
}

function mailOf(row, number) {
  const columns = comparing ? data.columns : [data.columns[number]];
  const cells = comparing ? data.cells[row] : [data.cells[row][number]];
  const one = data.cases[row];
  const side = (at) => (comparing ? `${"AB"[at]}: ` : "");
  const runs = cells.map((cell) => cell.runs[0]);
  const part = (title, lines) => (lines.length ? ["", title, ...lines] : []);
  const lines = [...wrapped(`${one.title}: ${cells.map((cell, at) => (comparing ? `${"AB"[at]} ` : "") + cell.word).join(", ")}`), ...wrapped(one.claim),
    "", ...columns.flatMap((column, at) => wrapped(side(at) + ranOn(column)))];
  if (comparing) lines.push(...part("Entries that differ (+X only here, -X only there):", entryLines(runs)));
  cells.forEach((cell, at) => {
    const reason = cell.runs[0] ? text(cell.runs[0].reason) : cell.reason;
    if (reason) lines.push("", ...wrapped(side(at) + reason));
    if (cell.runs[0]) lines.push(...part(`${side(at)}claims that are not ok:`, claimLines(columns[at], cell.runs[0])));
  });
  if (!comparing && runs[0]) lines.push(...part("Entries (+X was set, -X was cleared since the stop before):", entryLines(runs)));
  runs.forEach((run, at) => {
    const complaints = (run ? run.log.map(text) : []).filter((line) => COMPLAINT.test(line)).slice(0, 20);
    lines.push(...part(`${side(at)}complaints in the kernel log:`, complaints.flatMap((line) => wrapped(line, "  "))));
  });
  lines.push(...part("To run it again:", columns.flatMap((column) => shellLines(commandOf(row, column)))), "", ...wrapped(`hugepfn ${data.version}, ${data.date}`));
  return lines.join("\n");
}

/** A button that copies a text, and shows what it copied. */
function copyButton(button, place, make) {
  button.addEventListener("click", async () => {
    const said = make();
    const lines = said.split("\n");
    const area = el("textarea", { readonly: "", rows: Math.min(lines.length, 16), "aria-label": "the text for a mail" });
    area.value = said;
    const status = el("p", { role: "status" });
    place().replaceChildren(status, area);
    area.select();
    const copied = await navigator.clipboard.writeText(said).then(() => true, () => document.execCommand("copy"));
    status.textContent = copied ? `Copied: ${lines.length} lines.` : "This browser does not let a page copy. The text is selected: copy it with Ctrl-C.";
  });
  return button;
}
