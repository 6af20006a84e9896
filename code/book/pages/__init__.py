"""What the build adds to pages: boxes, lists of chapters, comparisons, glossary links, citations."""
