// What all parts of the page use: the data, elements, the address, the kernel's functions, commands.

const data = JSON.parse(document.getElementById("data").textContent);
const comparing = data.kind === "compare";
const text = (number) => data.strings[number];

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

/** What the address asks for: rows and scenario (the filters), case and kernel (what is open). */
const asked = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

function addressOf(wanted) {
  const plain = (value) => encodeURIComponent(value).replace(/%(3A|2F|40|2C|3D)/g, decodeURIComponent);
  const words = ["rows", "scenario", "case", "kernel"].filter((key) => wanted[key]).map((key) => `${key}=${plain(wanted[key])}`);
  return words.length ? `#${words.join("&")}` : location.pathname + location.search;
}

/** The name of a cell in the address; both columns of a comparison open together. */
const nameOf = (row, number) => ({ case: data.cases[row].name, ...(comparing ? {} : { kernel: data.columns[number].name }) });

/** A function of the kernel, as a link to its source where there is an address. */
function functionOf(column, name) {
  const [shown, address] = column.functions[name] || [name, ""];
  return address ? el("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, shown) : el("span", {}, shown);
}

/** The words of the command that runs a case on a column again. */
function commandOf(row, column) {
  const one = data.cases[row];
  return ["hugepfn", ...column.before, one.word, ...column.after];
}

const quoted = (word) => (/^[\w@%+=:,./~-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

/** A command's words; a line ends only between them, not at the hyphens of an option. */
const drawCommand = (words) => el("code", {}, words.flatMap((word, number) => [number ? " " : "", el("span", {}, word)]));

/** A long name, which a line may end in after +, / and _. */
const breakable = (words) => words.split(/(?<=[+/_])/).flatMap((piece, number) => [number ? el("wbr") : null, piece]);

const COMPLAINT = /\b(BUG|WARNING|Oops|panic|general protection|Call Trace|Bad page|bad p[mu]d|stall)\b/i;
const MARKS = { passed: "ok", failed: "BROKEN", known_bug: "known bug", expected: "expected" };
