"""`detr watch`: a page on this machine that shows a run while it trains.

`log_follower.py` reads what has been added to a log, `run_view.py` collects what the page shows, with warnings from
`signs.py`, and `server.py` answers the browsers: the page (`page.py`, `watch.js`), which asks every few seconds for
the view, and the pictures.
"""
