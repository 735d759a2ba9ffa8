"""Reports rendered: pure functions from a list of `potad.trace.result.Report`, or from snapshots.

`terminal` prints a table, `html` makes one self-contained page, `document` the JSON, and `top` the
screen of a running pool, arena or space. None of them measures, reads or writes anything. Terminal
and screen need rich and the page matplotlib, so neither is imported here.
"""
