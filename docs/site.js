// A table that is wider than the page scrolls; the keyboard reaches it only if it can have the focus.
function makeScrollable() {
  for (const region of document.querySelectorAll(".md-typeset__scrollwrap")) {
    if (region.scrollWidth > region.clientWidth) region.tabIndex = 0;
    else region.removeAttribute("tabindex");
  }
}
new ResizeObserver(makeScrollable).observe(document.body);
new MutationObserver(makeScrollable).observe(document.querySelector("article"), { childList: true, subtree: true });
