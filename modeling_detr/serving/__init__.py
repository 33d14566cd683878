"""`detr serve`: a model that answers over HTTP.

A request passes through `guard.py` (who may ask), `body.py` (the images in it), `images.py` (decoding, off the event
loop), `batcher.py` (images of several requests computed together, in one thread) and `service.py`, which counts what
is waiting and refuses what exceeds `limits.py`. `app.py` has the addresses and their schema, `page.py` and `serve.js`
the page at `/`, `metrics.py` what Prometheus reads, `server.py` the sockets, deadlines and the end.
"""
