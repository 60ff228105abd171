"""The warm agent: a process that has everything loaded and serves the calls which plugins' executables pass to it.

Runtimes need not know of it: they execute the same executables and get the same answers, only sooner. If no agent
listens, or it is busy, of another installation or in another mount namespace, the executable runs the plugin itself
(src/launcher/launcher.c).
"""
