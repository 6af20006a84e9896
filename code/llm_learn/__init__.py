"""The package that the chapters of LLM Learn import: small, and checked against reference libraries."""
