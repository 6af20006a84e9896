"""How the site looks and is found: mathematics, accessibility, style sheets, scripts, templates, settings."""
