/* The headings, tables, lists and paragraphs of a model card, as text nodes; its front matter is for programs. */
function markdown(text) {
  const box = english("div", "text", ""), lines = text.replace(/^---\n[\s\S]*?\n---\n/, "").split("\n");
  for (let place = 0; place < lines.length;) {
    const kind = kindOfLine(lines[place]), block = [];
    while (place < lines.length && (block.length === 0 || (kind !== "heading" && kindOfLine(lines[place]) === kind))) block.push(lines[place++]);
    if (kind !== "empty") box.append(BLOCKS[kind](block));
  }
  return box;
}
function kindOfLine(line) {
  if (!line.trim()) return "empty";
  if (/^#+ /.test(line)) return "heading";
  if (line.startsWith("|")) return "table";
  return /^([-*] |  )/.test(line) ? "list" : "paragraph";
}
const BLOCKS = {
  heading: ([line]) => make(line.startsWith("# ") ? "h3" : "h4", "", ...inline(line.replace(/^#+ /, ""))),
  paragraph: (lines) => make("p", "", ...inline(lines.join(" "))),
  list: (lines) => make("ul", "", ...lines.join("\n").split(/\n(?=[-*] )/).map((item) => make("li", "", ...inline(item.replace(/^[-*] /, ""))))),
  table: (lines) => {
    const cells = (line) => line.replace(/^\||\|\s*$/g, "").split("|").map((cell) => cell.trim());
    const filled = lines.map(cells).filter((line) => line.some((cell) => cell && !/^:?-+:?$/.test(cell)));
    const box = make("table", "", make("tbody", "", ...filled.map((line) => make("tr", "", ...line.map((cell) => make("td", "", ...inline(cell)))))));
    return box;
  },
};
/* `code` and **strong**; [links](address) keep their words only. */
function inline(text) {
  return text.replace(/\[([^\]]*)\]\([^)]*\)/g, "$1").split(/(`[^`]+`|\*\*[^*]+\*\*)/).filter(Boolean).map((part) => {
    if (part.startsWith("`")) return make("code", "", part.slice(1, -1));
    return part.startsWith("**") ? make("strong", "", part.slice(2, -2)) : part;
  });
}
