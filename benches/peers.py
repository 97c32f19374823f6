"""What comes before each script of peers: it ends with its bench, whatever it is at."""

import os
import queue
import sys
import threading


class Asks:
    """The lines of the standard input. At its end nobody waits for an answer any more."""

    def __init__(self, lines):
        self.came = queue.SimpleQueue()
        threading.Thread(target=self.hear, args=(lines,), daemon=True).start()

    def hear(self, lines):
        for line in lines:
            self.came.put(line)
        os._exit(0)

    def readline(self):
        return self.came.get()

    def __iter__(self):
        while True:
            yield self.readline()


sys.stdin = Asks(sys.stdin)
