/* Changes of Sphinx's search, which puts this file behind its own script. */
{
  // A page of that title comes before an entry of the glossary, and this before a page that only holds the word.
  Scorer.score = ([, , anchor, , score]) => (anchor.startsWith("#term-") ? score / 10 : score);

  // An excerpt is of the article's text: menus and the contents are in `main` too.
  const textOf = Search.htmlToText;
  Search.htmlToText = (html, anchor) => {
    const article = new DOMParser().parseFromString(html, "text/html").querySelector("article");
    article?.querySelectorAll(".chapter-box").forEach((box) => box.remove());
    return textOf(article ? `<div role="main">${article.innerHTML}</div>` : html, anchor);
  };
}
