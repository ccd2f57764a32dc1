// The entries of a cell: which stops there were, and how each word of 64 bits is drawn.

const PLAIN_ROWS = 12; // entries of one process at one stop that are drawn at once
const FIELDS = ["count", "checkpoint", "process", "place", "level", "raw", "changed", "bits", "appeared", "vanished", "pfn", "pagemap", "format"];

function entriesOf(run, side) {
  return (run ? run.rows : []).map((row) => {
    const entry = { side };
    FIELDS.forEach((name, number) => { entry[name] = number ? text(row[number]) : row[number]; });
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

const stopName = (stop) => stop.checkpoint + (stop.turn ? ` (time ${stop.turn + 1})` : "");

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

/** The stops of a row's cell, or of both cells in a comparison. */
const stopsOfRuns = (runs) => (comparing ? merged(runs.map((run, side) => entriesOf(run, "AB"[side]))) : stopsOf(entriesOf(runs[0], "")));

const placeOf = (entry) => entry.place + (entry.count > 1 ? ` x${entry.count}` : "");

/** The bits of an entry with their signs: ["", "W"], ["+", "D"], ["-", "A"]. */
function signed(entry) {
  const words = (list) => (list ? list.split(" ") : []);
  const appeared = new Set(words(entry.appeared));
  return [...words(entry.bits).map((name) => [appeared.has(name) ? "+" : "", name]), ...words(entry.vanished).map((name) => ["-", name])];
}

function drawBits(pairs) {
  return pairs.map(([sign, name]) => el({ "": "span", "+": "ins", "-": "del" }[sign], {}, sign + name));
}

/** Bits 51 to 13 are always of the pfn; bit 12 is PAT in a pmd and a pud. */
const isPfn = (bit, name) => bit >= 12 && bit < 52 && !name;

function strip(entry, names) {
  const [raw, changed] = [BigInt(entry.raw), BigInt("0x" + entry.changed)];
  const what = entry.level === "none" ? "nothing mapped" : signed(entry).map((pair) => pair.join("")).join(" ");
  const node = el("div", { class: "strip", role: "img", "aria-label": `${entry.raw}: ${what}` });
  for (let bit = 63; bit >= 0; bit--) {
    const mask = 1n << BigInt(bit);
    const name = names[bit] === "G" && !(raw & 1n) ? "PROTNONE" : names[bit];
    const pfn = isPfn(bit, name);
    const classes = [raw & mask ? "one" : "", pfn ? "pfn" : "", changed & mask ? "changed" : ""];
    const title = `bit ${bit}${name ? " " + name : pfn ? " (pfn)" : ""}: ${raw & mask ? 1 : 0}${changed & mask ? comparing ? ", the other kernel differs" : ", changed" : ""}`;
    node.append(el("i", { class: classes.filter(Boolean).join(" "), title }));
  }
  return node;
}

/** The names of the 64 positions, above the boxes. */
function ruler(names) {
  const node = el("div", { class: "ruler", "aria-hidden": "true" });
  for (let bit = 63; bit >= 52; bit--) node.append(el("span", {}, names[bit]));
  node.append(el("span", { class: "pfn" }, "pfn"));
  for (let bit = 12; bit >= 0; bit--) node.append(el("span", {}, names[bit]));
  return node;
}

/** The names of the 64 positions in a leaf of a level: nested tables and the IOMMU's have others than a process's. */
function namesOf(column, format, level) {
  const bits = data.bits[format] || column.bits;
  return bits[level] || bits.pte;
}

function drawEntry(entry, columns) {
  const names = namesOf(columns[entry.side === "B" ? 1 : 0], entry.format, entry.level);
  const empty = entry.bits ? null : el("span", { class: "faint" }, "nothing mapped");
  return el("div", { class: "entry mono" },
    el("div", { class: "where" }, entry.side ? el("span", { class: "side" }, entry.side) : null,
      el("span", {}, placeOf(entry)), el("b", {}, entry.level), el("span", {}, entry.raw),
      el("span", { class: "faint" }, `pfn ${entry.pfn}`), el("span", { class: "faint" }, `pagemap ${entry.pagemap}`)),
    strip(entry, names), el("div", { class: "names" }, empty, drawBits(signed(entry))));
}

function drawProcess(name, entries, columns) {
  const cell = el("div", { class: "seen" }, el("span", { class: "process" }, name), entries.slice(0, PLAIN_ROWS).map((entry) => drawEntry(entry, columns)));
  if (entries.length > PLAIN_ROWS) {
    const rest = entries.slice(PLAIN_ROWS);
    const more = el("button", { type: "button", class: "more", onclick: () => more.replaceWith(...rest.map((entry) => drawEntry(entry, columns))) },
      `${rest.length} more`);
    cell.append(more);
  }
  return cell;
}

function legend() {
  const sample = (classes) => el("span", { class: "strip" }, el("i", { class: classes }));
  const than = comparing ? "differs from the other kernel" : "changed since the stop before";
  return el("p", { class: "legend" }, el("span", {}, "bit 63 is at the left"), el("span", {}, sample("one"), "1"), el("span", {}, sample(""), "0"),
    el("span", {}, sample("pfn one"), "1 in the pfn"), el("span", {}, sample("changed one"), `1, ${than}`), el("span", {}, sample("changed"), `0, ${than}`),
    el("span", {}, comparing ? "+X only here, -X only there" : "+X was set, -X was cleared since the stop before"));
}

function drawEntries(row, runs, columns) {
  const stops = stopsOfRuns(runs);
  if (!stops.length) return el("p", { class: "faint" }, "No entries were seen.");
  const processes = [...new Set(stops.flatMap((stop) => stop.entries.map((entry) => entry.process)))];
  const rulerOf = (process) => {
    const { format } = stops.flatMap((stop) => stop.entries).find((entry) => entry.process === process);
    const [names, others] = [columns[0], columns[columns.length - 1]].map((column) => namesOf(column, format, data.cases[row].level));
    return ruler(names.map((name, bit) => (name === others[bit] ? name : `${name || "-"} / ${others[bit] || "-"}`)));
  };
  const grid = el("div", { class: "stops", style: `--processes: ${processes.length}` }, el("div", { class: "corner" }, "checkpoint"),
    processes.map((name) => el("div", { class: "who" }, el("b", {}, name), rulerOf(name))));
  for (const stop of stops) {
    grid.append(el("div", { class: "stop" }, stopName(stop)));
    for (const name of processes) grid.append(drawProcess(name, stop.entries.filter((entry) => entry.process === name), columns));
  }
  return el("div", {}, legend(), grid);
}
