"""The report as one page: what the published marts say about the data, in words, tables and charts, for `finegrain report --html`."""
