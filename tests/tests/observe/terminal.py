"""Runs a program in a terminal of its own, 120 by 30, as a person does: terminal.py STEPS PROGRAM…

STEPS: a JSON list of [keys, texts]: the keys are pressed, and all of the texts appear on what is drawn from then on. Out:
one JSON object: what was drawn in each step, the program's status, and whether the terminal is afterwards as it was.
"""

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

PATIENCE = 30


def read(master, until):
    """What comes at once, or after a wait."""
    if select.select([master], [], [], max(0, until - time.monotonic()))[0]:
        try:
            return os.read(master, 1 << 16).decode(errors="replace")
        except OSError:
            return ""
    return ""


def plain(text):
    """Without colours, and with the cursor's ways as ends of lines."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", lambda it: "" if it[0].endswith("m") else "\n", text)


def main():
    steps, program = json.loads(sys.argv[1]), sys.argv[2:]
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(program, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                               preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    drawn, everything, missing = [], "", []
    for keys, texts in steps:
        os.write(master, keys.encode())
        seen, until = "", time.monotonic() + PATIENCE
        while time.monotonic() < until and not all(text in plain(seen) for text in texts):
            if process.poll() is not None:
                break
            seen += read(master, until)
        everything += seen
        drawn.append(plain(seen))
        missing += [text for text in texts if text not in plain(seen)]
    raw = termios.tcgetattr(slave) != before
    os.write(master, b"q")
    try:
        status = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        status = process.wait()
    while more := read(master, time.monotonic() + 0.2):
        everything += more
    print(json.dumps({
        "drawn": drawn,
        "missing": missing,
        "status": status,
        "raw": raw,
        "restored": termios.tcgetattr(slave) == before,
        "screen": everything.count("\x1b[?1049h") == everything.count("\x1b[?1049l") == 1,
        "cursor": everything.rfind("\x1b[?25h") > everything.rfind("\x1b[?25l") >= 0,
    }))


main()
