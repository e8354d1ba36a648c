"""`pyflannel web`: a node's status as a page, live.

Two processes. One listens and speaks HTTP; started as root it becomes `nobody` before it accepts a
connection (`server`, `run`). The other keeps the rights to open the daemon's status socket
(`asker`). It reads single bytes, each of which means "ask now", and returns the answers. So no data
from a browser ever reaches a process with rights.

Pure functions make what the page shows: `view` turns a report into values for the script, `watch`
keeps the state of a node over time, with a bounded history of each peer (`history`). The page
itself (`page/`) is plain HTML, CSS, SVG and one script. All of it comes from this server, and the
content security policy allows nothing else. Foreign texts become text nodes only.
"""
