/* Words in the language of the reader, numbers as it writes them, and the few ways in which the page is built.
   Text always enters as text nodes: names of files and messages of the service are not ours. */
const $ = (id) => document.getElementById(id);
const { suffixes: SUFFIXES, subject: SUBJECT_ID, words: WORDS } = JSON.parse($("about").textContent);
const LANGUAGES = Object.keys(WORDS);

let language = chosenLanguage();

function chosenLanguage() {
  const asked = [new URLSearchParams(location.search).get("lang"), ...(navigator.languages || [])];
  const known = asked.filter(Boolean).map((tag) => tag.toLowerCase().split("-")[0]).find((tag) => LANGUAGES.includes(tag));
  return known || "en";
}

/* The words of a key; `n` chooses between one and several, where there are both. */
function say(key, values = {}) {
  const words = WORDS[language];
  const text = words[key] ?? words[key + "." + new Intl.PluralRules(language).select(values.n ?? 0)];
  const shown = { ...values, ...(typeof values.n === "number" ? { n: number(values.n) } : {}) };
  return text.replace(/\{(\w+)\}/g, (whole, name) => shown[name] ?? whole);
}
const number = (value, digits = 0) => new Intl.NumberFormat(language, { maximumFractionDigits: digits }).format(value);

/* Never 100 % or 0 % of what is only nearly so. */
function percent(value) {
  const written = (share) => new Intl.NumberFormat(language, { minimumFractionDigits: 1, maximumFractionDigits: 1 }).format(100 * share) + "\u00a0%";
  if (value > .999 && value < 1) return ">\u00a0" + written(.999);
  if (value < .001 && value > 0) return "<\u00a0" + written(.001);
  return written(value);
}
/* A threshold is a line, not an estimate: as fine as it needs to be. */
const level = (value) => new Intl.NumberFormat(language, { maximumSignificantDigits: 3 }).format(100 * value) + "\u00a0%";

function bytes(n) {
  if (n < 1024) return n + "\u00a0B";
  return n < 1048576 ? number(n / 1024) + "\u00a0KiB" : number(n / 1048576, 1) + "\u00a0MiB";
}

function make(tag, name, ...content) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.append(...content.filter((part) => part !== null && part !== undefined));
  return node;
}
function button(text, onClick) {
  const node = make("button", "", text);
  node.type = "button";
  node.addEventListener("click", onClick);
  return node;
}
/* Words of the service, which speaks English. */
function english(tag, name, text) {
  const node = make(tag, name, text);
  node.lang = "en";
  return node;
}
/* Pairs of a term and what is said of it; none where there is nothing to say. */
function facts(pairs) {
  const list = make("dl", "facts");
  for (const [key, value] of pairs) {
    if (value === null || value === undefined || value === "") continue;
    list.append(make("dt", "", say(key)), make("dd", "", value));
  }
  return list;
}

function translateDocument() {
  document.documentElement.lang = language;
  for (const node of document.querySelectorAll("[data-word]")) node.textContent = say(node.dataset.word);
  for (const node of document.querySelectorAll("[data-word-label]")) node.setAttribute("aria-label", say(node.dataset.wordLabel));
  const other = LANGUAGES[(LANGUAGES.indexOf(language) + 1) % LANGUAGES.length];
  $("language").textContent = WORDS[other].language;
  $("language").lang = other;
}
