"""The warm agent: serves the calls that the plugins' executables pass to it, in a process that has everything ready.

It is no part of the protocol: a runtime execs the same executables and gets the same answers, only sooner. Where no
agent listens, or one that is busy, of another installation or in another mount namespace, the executable does the work
itself (src/launcher/launcher.c).
"""
