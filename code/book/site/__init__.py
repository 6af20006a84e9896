"""The site's appearance: mathematics, accessibility, style sheets, scripts, templates, settings."""
