// In a block that keeps line breaks, a long line runs out of the page. Here lines of code, and the claims among the
// printed lines, become elements of their own, which book.css lets wrap. Printed tables stay as they are, and scroll.
document.addEventListener("DOMContentLoaded", () => {
  const element = (name) => Object.assign(document.createElement("span"), { className: name });
  // The line breaks stay, for the button that copies.
  const refill = (block, parts) => block.replaceChildren(...parts.flatMap((part, i) => (i ? ["\n", part] : [part])));

  // A claim is printed as one line that starts with a check mark.
  for (const block of document.querySelectorAll("div.cell_output div.output.stream pre")) {
    const lines = block.textContent.split("\n");
    if (!lines.some((text) => text.startsWith("✓ "))) continue;
    const part = (text) => {
      if (!text.startsWith("✓ ")) return text;
      const claim = element("claim");
      claim.textContent = text;
      return claim;
    };
    refill(block, lines.map(part));
  }

  // The highlighter closes its elements at the end of each line, so its output can be cut at line breaks. What wraps
  // stands four characters deeper than the line it belongs to.
  for (const block of document.querySelectorAll("div.cell_input div.highlight pre")) {
    const part = (html) => {
      if (!html) return "";
      const line = element("code-line");
      line.innerHTML = html;
      line.style.setProperty("--indent", `${line.textContent.search(/\S|$/) + 4}ch`);
      return line;
    };
    refill(block, block.innerHTML.split("\n").map(part));
  }
});
