"""`pyflannel web`: a node's status as a page, live.

Two processes. One listens and speaks HTTP; started as root it becomes `nobody` before it accepts a
connection (`server`, `run`). The other keeps the rights to open the daemon's status socket
(`asker`). It takes single bytes, each of which means "ask now", and gives the answers; so nothing
that a browser sends ever reaches a process with rights.

What the page shows is made by pure functions: `view` turns a report into values for the script,
`watch` keeps what is known of a node over time, with a bounded past of each peer (`history`).

The page itself (`page/`) is plain HTML, CSS, SVG and one script. Everything comes from this server,
the content security policy allows nothing else, and texts of others become text nodes only.
"""
