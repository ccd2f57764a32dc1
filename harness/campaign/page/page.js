"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const comparing = data.kind === "compare";
  const text = (number) => data.strings[number];
  const PLAIN_ROWS = 12; // entries of one process at one stop that are drawn at once

  /** An element; children are nodes or strings, null is left out. */
  function el(name, attributes = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== null && value !== false) node.setAttribute(key, value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== ""));
    return node;
  }

  // --- the table ---------------------------------------------------------------------------------

  const table = document.querySelector(".matrix");
  const dialog = document.querySelector("dialog");
  const buttons = []; // [row][column]

  function countsOf(column) {
    const counts = new Map(["PASS", "FIXED", "SKIP", "BUG", "UNKNOWN", "ERROR", "FLAKE", "FAIL"].map((mark) => [mark, 0]));
    for (const row of data.cells) counts.set(row[column].mark, counts.get(row[column].mark) + 1);
    const words = { FIXED: "pass*", UNKNOWN: "?", FAIL: "FAIL" };
    return [...counts].filter(([, count]) => count).map(([mark, count]) => `${count}\u00a0${words[mark] || mark.toLowerCase()}`).join(", ");
  }

  function heading(column, number) {
    const side = comparing ? `${"AB"[number]}: ` : "";
    const ran = [column.release, column.qemu && `QEMU ${column.qemu} (${column.accel})`, column.smp > 1 && `${column.smp} vCPUs`, column.append];
    return el("th", { scope: "col", title: ran.filter(Boolean).join(", ") || column.trouble },
      side + column.label, el("small", {}, column.release || ""), el("small", {}, countsOf(number)));
  }

  function drawCell(cell, row, number) {
    const button = el("button", {
      type: "button", tabindex: row || number ? "-1" : "0",
      "aria-label": `${data.cases[row].name} on ${data.columns[number].label}: ${cell.word}`, title: cell.reason || null,
      onclick: () => open(row, number), onkeydown: (event) => move(event, row, number),
    }, cell.word, cell.note ? el("sup", {}, ` ${cell.note}`) : null);
    buttons[row][number] = button;
    return el("td", { class: cell.mark }, button);
  }

  function told(differs, entries) {
    const words = ([what, name, by, before, after]) => el("li", {}, what === "claim" ? `${name}: ` : `${what} ${name}: `.replace(" :", ":"),
      el("b", {}, before), " in A, ", el("b", {}, after), " in B", by ? el("span", { class: "faint" }, ` [${by}]`) : null);
    const seen = entries ? el("li", {}, entries === 1 ? "1 entry" : `${entries} entries`) : null;
    return el("td", { class: "told" }, el("ul", {}, differs.map(words), seen));
  }

  function drawTable() {
    table.append(el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "scenario"), data.columns.map(heading),
      comparing ? el("th", { scope: "col" }, "what differs") : null)));
    const body = el("tbody");
    data.cases.forEach((one, row) => {
      buttons.push([]);
      body.append(el("tr", {}, el("th", { scope: "row", title: one.claim },
        one.scenario, el("span", { class: "level" }, one.name.slice(one.scenario.length))),
        data.cells[row].map((cell, number) => drawCell(cell, row, number)), comparing ? told(one.differs, one.entries) : null));
    });
    table.append(body);
  }

  /** Arrow keys go from cell to cell. */
  function move(event, row, number) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    let [at, across] = [row + step[0], number + step[1]];
    while (buttons[at] && buttons[at][0].closest("tr").hidden) at += step[0];
    const target = buttons[at] && buttons[at][across];
    if (target) focusOn(target);
  }

  function focusOn(target) {
    for (const button of table.querySelectorAll('button[tabindex="0"]')) button.tabIndex = -1;
    target.tabIndex = 0;
    target.focus();
  }

  function filter(form) {
    const part = form.scenario.value.trim().toLowerCase();
    let shown = 0;
    data.cases.forEach((one, row) => {
      const marks = data.cells[row].map((cell) => cell.mark);
      const wanted = { all: true, notable: marks.some((mark) => mark !== "PASS" && mark !== "SKIP"), differing: new Set(marks).size > 1 };
      const visible = wanted[form.rows.value] && one.name.toLowerCase().includes(part);
      buttons[row][0].closest("tr").hidden = !visible;
      shown += visible;
    });
    form.querySelector("output").textContent = shown < data.cases.length ? `${shown} of ${data.cases.length} rows` : "";
    const first = buttons.map((row) => row[0]).find((button) => !button.closest("tr").hidden);
    if (first) for (const button of table.querySelectorAll("td button")) button.tabIndex = button === first ? 0 : -1;
  }

  // --- a cell, opened ----------------------------------------------------------------------------

  const COLUMNS = ["count", "checkpoint", "process", "place", "level", "raw", "changed", "bits", "appeared", "vanished", "pfn", "pagemap"];

  function entriesOf(run, side) {
    return (run ? run.rows : []).map((row) => {
      const entry = { side };
      COLUMNS.forEach((name, number) => { entry[name] = number ? text(row[number]) : row[number]; });
      return entry;
    });
  }

  /** Stops in order; a checkpoint that is reached again is another stop. */
  function stopsOf(entries) {
    const stops = [];
    const times = new Map();
    let last = null;
    for (const entry of entries) {
      const seen = `${entry.process} ${entry.place}`;
      if (!last || last.checkpoint !== entry.checkpoint || last.seen.has(seen)) {
        const turn = times.get(entry.checkpoint) || 0;
        times.set(entry.checkpoint, turn + 1);
        last = { checkpoint: entry.checkpoint, turn, seen: new Set(), entries: [] };
        stops.push(last);
      }
      last.seen.add(seen);
      last.entries.push(entry);
    }
    return stops;
  }

  /** Two kernels' stops as one list, what belongs to the same place beside each other. */
  function merged(sides) {
    const all = sides.map(stopsOf);
    const key = (stop) => `${stop.checkpoint} ${stop.turn}`;
    const stops = new Map();
    for (const list of all) for (const stop of list) {
      const known = stops.get(key(stop));
      if (known) known.entries.push(...stop.entries);
      else stops.set(key(stop), { ...stop, entries: [...stop.entries] });
    }
    for (const stop of stops.values()) {
      const order = [...new Set(stop.entries.map((entry) => entry.place))];
      stop.entries.sort((a, b) => order.indexOf(a.place) - order.indexOf(b.place) || a.side.localeCompare(b.side));
      stop.entries = stop.entries.filter((entry) => entry.side === "A" || !twinOf(entry, stop.entries));
    }
    return [...stops.values()];
  }

  /** The other kernel's entry of the same place, where it says the same; one of them then stands for both. */
  function twinOf(entry, entries) {
    const alike = ["process", "place", "count", "level", "bits", "pagemap", "changed"];
    const twin = BigInt("0x" + entry.changed) === 0n && entries.find((other) => other.side[0] === "A" && alike.every((name) => other[name] === entry[name]));
    if (twin) twin.side = "A = B";
    return twin;
  }

  function strip(entry, names) {
    const [raw, changed] = [BigInt(entry.raw), BigInt("0x" + entry.changed)];
    const what = entry.level === "none" ? "nothing mapped" : entry.bits;
    const difference = [entry.appeared && `gained ${entry.appeared}`, entry.vanished && `lost ${entry.vanished}`].filter(Boolean).join(", ");
    const node = el("div", { class: "strip", role: "img", "aria-label": `${entry.raw}: ${what}${difference ? "; " + difference : ""}` });
    for (let bit = 63; bit >= 0; bit--) {
      const mask = 1n << BigInt(bit);
      const present = (raw & 1n) === 1n;
      const name = bit === 8 && !present ? "PROTNONE" : names[bit];
      const pfn = bit >= 12 && bit < 52 && !name;
      const classes = [raw & mask ? "one" : "", pfn ? "pfn" : "", changed & mask ? "changed" : "", bit % 4 === 3 && bit < 63 ? "b" : ""];
      const title = `bit ${bit}${name ? " " + name : pfn ? " (pfn)" : ""}: ${raw & mask ? 1 : 0}${changed & mask ? comparing ? ", the other kernel differs" : ", changed" : ""}`;
      node.append(el("i", { class: classes.filter(Boolean).join(" "), title }));
    }
    return node;
  }

  function drawEntry(entry, columns) {
    const column = columns[entry.side === "B" ? 1 : 0];
    const names = column.bits[entry.level] || column.bits.pte;
    const appeared = new Set(entry.appeared.split(" "));
    const bits = entry.bits ? entry.bits.split(" ").map((name) => appeared.has(name) ? el("ins", {}, `+${name}`) : el("span", {}, name)) : [el("span", { class: "faint" }, "nothing mapped")];
    const gone = entry.vanished ? entry.vanished.split(" ").map((name) => el("del", {}, `-${name}`)) : [];
    return el("div", { class: "entry mono" },
      el("div", { class: "where" }, comparing ? el("span", { class: "side" }, entry.side) : null,
        el("span", {}, entry.place + (entry.count > 1 ? ` x${entry.count}` : "")), el("b", {}, entry.level), el("span", {}, entry.raw),
        el("span", { class: "faint" }, `pfn ${entry.pfn}`), el("span", { class: "faint" }, `pagemap ${entry.pagemap}`)),
      strip(entry, names), el("div", { class: "names" }, bits, gone));
  }

  function drawProcess(entries, columns) {
    const cell = el("div", {}, entries.slice(0, PLAIN_ROWS).map((entry) => drawEntry(entry, columns)));
    if (entries.length > PLAIN_ROWS) {
      const rest = entries.slice(PLAIN_ROWS);
      const more = el("button", { type: "button", class: "more", onclick: () => more.replaceWith(...rest.map((entry) => drawEntry(entry, columns))) },
        `${rest.length} more`);
      cell.append(more);
    }
    return cell;
  }

  /** The names of the 64 positions, once. */
  function ruler(names) {
    const node = el("div", { class: "ruler", "aria-hidden": "true" });
    for (let bit = 63; bit >= 0; bit--) node.append(el("span", {}, names[bit] || (bit === 51 ? "pfn" : "")));
    for (let bit = 63; bit >= 0; bit--) node.append(el("i", { class: [names[bit] ? "named" : bit >= 12 && bit < 52 ? "pfn" : "", bit % 4 === 3 && bit < 63 ? "b" : ""].join(" ") }));
    return node;
  }

  function drawEntries(row, sides, columns) {
    const stops = comparing ? merged(sides) : stopsOf(sides[0]);
    if (!stops.length) return el("p", { class: "faint" }, "No entries were seen.");
    const processes = [...new Set(stops.flatMap((stop) => stop.entries.map((entry) => entry.process)))];
    const [names, others] = [columns[0], columns[columns.length - 1]].map((column) => column.bits[data.cases[row].level] || column.bits.pte);
    const both = names.map((name, bit) => (name === others[bit] ? name : `${name || "-"} / ${others[bit] || "-"}`));
    const grid = el("div", { class: "stops", style: `grid-template-columns: minmax(7rem, 10rem) repeat(${processes.length}, minmax(24rem, 1fr))` },
      el("div", { class: "corner" }, "checkpoint"),
      processes.map((name) => el("div", { class: "who" }, name)));
    for (const stop of stops) {
      grid.append(el("div", { class: "stop" }, stop.checkpoint, stop.turn ? ` (time ${stop.turn + 1})` : ""));
      for (const name of processes) grid.append(drawProcess(stop.entries.filter((entry) => entry.process === name), columns));
    }
    const sample = (classes) => el("span", { class: "strip" }, el("i", { class: classes }));
    const than = comparing ? "differs from the other kernel" : "changed since the stop before";
    return el("div", {}, el("p", { class: "legend" }, el("span", {}, "bit 63 is at the left"), el("span", {}, sample("one"), "1"), el("span", {}, sample(""), "0"),
      el("span", {}, sample("pfn one"), "1 in the pfn"), el("span", {}, sample("changed one"), `1, ${than}`), el("span", {}, sample("changed"), `0, ${than}`),
      el("span", {}, comparing ? "+X only here, -X only there" : "+X was set, -X was cleared since the stop before")), ruler(both), grid);
  }

  function drawClaims(run) {
    if (!run.claims.length) return el("p", { class: "faint" }, "No claim was reached.");
    const mark = { passed: "ok", failed: "BROKEN", known_bug: "known bug" };
    const list = (claims) => el("ul", { class: "claims" }, claims.map((claim) => {
      const [name, outcome, by, message] = claim.map(text);
      return el("li", {}, el("span", { class: `mark ${outcome}` }, mark[outcome] || outcome), name,
        by ? el("span", { class: "faint" }, ` [${by}]`) : null, message ? el("pre", {}, message) : null);
    }));
    const held = run.claims.filter((claim) => text(claim[1]) === "passed");
    const others = run.claims.filter((claim) => text(claim[1]) !== "passed");
    const words = held.length === run.claims.length ? `All ${held.length} hold` : `${held.length} of ${run.claims.length} hold`;
    return el("div", {}, list(others), held.length ? el("details", {}, el("summary", {}, words), list(held)) : null);
  }

  function drawLog(run) {
    const complaint = /\b(BUG|WARNING|Oops|panic|general protection|Call Trace|Bad page|bad p[mu]d|stall)\b/i;
    const lines = run.log.map((number) => {
      const line = text(number);
      const kind = complaint.test(line) ? "complaint" : line.includes("hugepfn: checkpoint") ? "checkpoint" : "";
      return el("span", { class: kind || null }, line + "\n");
    });
    return lines.length ? el("pre", { class: "log" }, lines) : el("p", { class: "faint" }, "Nothing.");
  }

  function drawRun(row, run, column, name) {
    const reason = run.reason !== undefined ? text(run.reason) : "";
    return [reason ? el("pre", { class: "reason" }, reason) : null,
      el("h3", {}, `Claims${name}`), drawClaims(run),
      comparing ? null : el("h3", {}, "Entries"), comparing ? null : drawEntries(row, [entriesOf(run, "A")], [column]),
      run.beyond ? el("p", { class: "faint" }, `${run.beyond} more rows are not in this page.`) : null,
      el("h3", {}, `Kernel log${name}`), drawLog(run)];
  }

  function command(row, column) {
    const one = data.cases[row];
    const quote = (word) => (/^[\w@%+=:,./~-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
    return ["hugepfn run", one.scenario, one.level ? `--level ${one.level}` : "", "--kernel", quote(column.spec),
      column.smp > 1 ? `--smp ${column.smp}` : "", column.append ? `--append ${quote(column.append)}` : ""].filter(Boolean).join(" ");
  }

  function body(row, number) {
    const cells = data.cells[row];
    if (comparing) {
      const sides = cells.map((cell, side) => entriesOf(cell.runs[0], "AB"[side]));
      return [el("h3", {}, "Entries"), drawEntries(row, sides, data.columns),
        cells.map((cell, side) => cell.runs[0] ? drawRun(row, cell.runs[0], data.columns[side], ` in ${"AB"[side]}: ${data.columns[side].spec}`) :
          el("p", {}, `${"AB"[side]}: ${cell.reason || "no result"}`))].flat(3);
    }
    const cell = cells[number];
    if (!cell.runs.length) return [el("pre", { class: "reason" }, cell.reason)];
    if (cell.runs.length === 1) return drawRun(row, cell.runs[0], data.columns[number], "");
    return cell.runs.flatMap((run, turn) => [el("h2", {}, `Run ${turn + 1}: ${run.outcome}`), ...drawRun(row, run, data.columns[number], "")]);
  }

  function open(row, number) {
    const [one, cell] = [data.cases[row], data.cells[row][number]];
    const column = data.columns[number];
    const go = (step, words) => el("button", { type: "button", disabled: data.columns[number + step] ? null : "", onclick: () => open(row, number + step) }, words);
    dialog.replaceChildren(
      el("header", {}, el("div", {}, el("h2", { id: "opened" }, comparing ? one.name : `${one.name} on ${column.label}: `,
        comparing ? null : el("span", { class: cell.mark }, cell.word)), el("span", { class: "faint" }, one.claim)),
        el("div", { class: "buttons" }, comparing ? null : [go(-1, "previous kernel"), go(1, "next kernel")],
          el("button", { type: "button", autofocus: "", onclick: () => dialog.close() }, "close"))),
      el("div", { tabindex: "0" }, (comparing ? data.columns : [column]).map((each) => el("p", {}, el("code", {}, command(row, each)))),
        ...body(row, number).filter((child) => child !== null)));
    if (!dialog.open) dialog.showModal();
    history.replaceState(null, "", `#${row + 1}.${number + 1}`);
    dialog.onclose = () => {
      history.replaceState(null, "", location.pathname + location.search);
      focusOn(buttons[row][number]);
    };
  }

  function openFromAddress() {
    const found = /^#(\d+)\.(\d+)$/.exec(location.hash);
    const [row, number] = found ? [found[1] - 1, found[2] - 1] : [-1, -1];
    if (data.cells[row] && data.cells[row][number]) open(row, number);
  }

  // --- the page ----------------------------------------------------------------------------------

  document.querySelector("h1").textContent = comparing ? `${data.columns[0].spec} against ${data.columns[1].spec}` : "hugepfn: scenarios on kernels";
  const same = comparing ? `${data.cases.length} of ${data.compared} cases differ` : `${data.columns.length} kernels, ${data.cases.length} cases`;
  document.querySelector(".about").textContent = `${same}; ${data.date}. A cell opens to the entries at every checkpoint, the claims and the kernel's log.`;
  if (data.cases.length) drawTable();
  else document.querySelector(".scroll").remove();
  const form = document.querySelector(".filters");
  if (!comparing) {
    form.hidden = false;
    form.addEventListener("input", () => filter(form));
    form.addEventListener("submit", (event) => event.preventDefault());
  }
  const notes = document.querySelector(".notes");
  if (data.notes.length) notes.append(el("h3", {}, "Reasons"), el("ol", {}, data.notes.map((note) => el("li", {}, note))));
  if (data.missing.length) notes.append(el("h3", {}, "Not to be had"), el("ul", {}, data.missing.map((line) => el("li", {}, line))));
  window.addEventListener("hashchange", openFromAddress);
  openFromAddress();
})();
