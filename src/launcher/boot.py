# The program that the launcher passes to the interpreter, as `python -I -S -E -c PROGRAM FOLDERS REFERENCE ...`:
# isolated, without the site module. setup.py compiles it into the launcher, without these comments.
#
# Arguments: the folders to import from, joined by colons; the plugin as module:attribute; the command line's own.
import gc
import sys

gc.disable()  # a plugin's process ends before there is any garbage to collect
folders = sys.argv[1].split(":")
# Python's last folder, with its extension modules, goes first: no other one need be looked through then.
sys.path[:] = sys.path[-1:] + folders + sys.path[:-1]
try:
    import _io
    import marshal

    # The bundle is all the code in one file (cni/invoke/bundle.py). A tree that is built in place has none.
    file = _io.FileIO(folders[0] + "/cni/_bundle." + sys.implementation.cache_tag)
    head = int.from_bytes(file.read(8), "little")
    code, index = marshal.loads(file.read(head))  # noqa: S302 - the package's own
    file.close()
except FileNotFoundError:
    pass
else:
    bundle = {"__name__": "cni.invoke.bundle"}
    exec(code, bundle)  # noqa: S102 - the package's own
    bundle["install"](file.name, 8 + head, index, folders[0])  # type: ignore[operator]
try:
    from cni.invoke.launcher import load, start

    load(sys.argv[2])
except (ImportError, AttributeError) as error:  # the packages are gone
    import json

    message = f"import {sys.argv[2]} from {sys.argv[1]}: {error}; run 'cni install' again"
    print(json.dumps({"code": 999, "msg": message}, indent=4))
    sys.exit(1)
start(sys.argv[2], sys.argv[3:])
