"""Reports rendered: pure functions from a list of `potad.trace.result.Report`.

`terminal` prints a table, `html` makes one self-contained page, `document` the JSON. None of
them measures, reads or writes anything. The terminal needs rich and the page matplotlib, so
neither is imported here.
"""
