"""Generated content of pages: boxes, lists of chapters, comparisons, glossary links, citations."""
