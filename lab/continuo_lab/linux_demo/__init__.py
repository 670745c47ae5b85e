"""`make demo GUEST=linux`: an unmodified Debian Linux guest in an emulated host moves live under Continuo's VMM, once
as if never stopped and once from where it stood; its own agent, NTP daemon and watch tell what it saw.

`guest.py` is what goes into the guest, `host.py` what runs on the host, `story.py` what is told of it all.
"""
