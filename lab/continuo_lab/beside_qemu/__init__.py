"""Continuo beside QEMU: the same Linux guest, moved by both on one host, its clocks taken as lines.

`campaign` runs outside: it packs what is needed, boots the host, keeps what comes. `inside` runs in
the host and moves the guests. `evaluation` turns what was recorded into figures, `page` shows them.
"""
